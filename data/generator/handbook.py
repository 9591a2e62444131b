"""The desk's handbook as a person wrote it: what each category means and what to do about it.

The corpus adds examples and the ETA of real messages to these pages; only prose lives here.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Page:
    """One category: what it is, what it is not, what the desk does, and how such tickets end."""

    title: str
    meaning: str
    limits: str
    action: str
    outcomes: tuple[str, ...]


PAGES = {
    "delivery_delay": Page(
        "Late deliveries",
        "A late delivery is a shipment that is on its way, that we can find, and that will come "
        "after the time the customer was given. It is the most common message on the desk. The "
        "truck is running late, the driver is stuck in traffic, the linehaul came in late, the "
        "ferry did not sail on time. Nothing is wrong with the goods, the papers or the address; "
        "only the clock has moved.",
        "If the truck never came to load, it is not a late delivery but a missed_pickup, because "
        "the goods have not left. If a sea or air booking was moved to another sailing or flight, "
        "it is rolled_booking. If the driver is late because the address was wrong, the address "
        "is what we have to repair, so the message goes down as address_issue.",
        "Give the customer the new time first and the reason second. If the message has no new "
        "time, ask the carrier once, set the bucket to unknown and look again after two hours. Do "
        "not promise a time that nobody has written down.",
        (
            "The customer moved the crew to the new time and no cost was booked.",
            "We told the customer the new time and the truck kept to it.",
            "The depot swapped the tour and the stop was made before closing.",
            "The carrier took the blame and paid the second attempt.",
        ),
    ),
    "status_request": Page(
        "Questions about status",
        "A status request is a question and nothing more. Somebody wants to know where the order "
        "is, whether there is any news, what the latest is, or why the tracking link does not "
        "work. The writer does not report a problem; the writer asks us to look.",
        "Read to the end before you file it. A question that also says there was no scan since "
        "the last depot, or that the parcel is missing, is a lost_parcel with a question mark. A "
        "driver who tells us that he is late does not ask anything, so that is a delivery_delay. "
        "Many messages end with please inform the customer; that is politeness and not a status "
        "request.",
        "Open the track, answer in one line, and name the source. If the writer mentions a date "
        "that the portal shows, that date decides the bucket. If no date is mentioned the bucket "
        "is unknown, which is the usual case here.",
        (
            "The answer went out in ten minutes and the ticket was closed.",
            "The link worked again after the portal was restarted.",
            "We sent the track and the writer was content.",
            "The depot confirmed the plan and we passed it on.",
        ),
    ),
    "address_issue": Page(
        "Trouble with the address",
        "An address issue is any message that says the driver has the goods and cannot get them to "
        "the door, because the address is wrong, incomplete or no longer true. The house number "
        "is missing, the postcode does not match the city, the consignee has moved to a new site, "
        "the name is not on the bell, the gate code is missing. A customer who asks us to change "
        "the delivery address belongs here too.",
        "A closed shop is not an address issue. A consignee who refuses the goods is not an "
        "address issue either; that is return_to_sender. If the driver writes address is correct "
        "or address was checked, the trouble is somewhere else in the message, so keep reading.",
        "Ask the shipper for the full address with house number and postcode, correct it in the "
        "order, and tell the depot before the tour is planned. A corrected address nearly always "
        "means a new attempt on the next day.",
        (
            "The shipper sent the house number and the driver went back.",
            "The label was printed again with the right postcode.",
            "The consignee met the driver at the old site.",
            "The gate code was added to the order for the next time.",
        ),
    ),
    "customs_hold": Page(
        "Held by customs",
        "Customs hold means that an office has stopped the goods and that we have to wait for its "
        "release. The message says held by customs, blocked by customs, selected for x-ray, duty "
        "and VAT not paid, the tariff code was queried, the import declaration was rejected, or "
        "the broker says that clearance is on hold. The goods are safe and we know where they "
        "are, but nobody may move them.",
        "When customs waits for a paper that we can name, such as the commercial invoice or the "
        "certificate of origin, the message goes down as documents_missing, because sending the "
        "paper is what ends the hold. When the message says that customs is already cleared, or "
        "that there is no customs on this lane, the trouble is something else.",
        "Call the broker, not the customs office. Ask what is open: duty, a check, or a code. "
        "Write the answer in the ticket. A check takes three to five days as a rule; a rejected "
        "declaration can take longer than a week.",
        (
            "The duty was paid and the release came the same evening.",
            "The broker sent a new tariff code and the goods moved on.",
            "The x-ray showed nothing and the container was released.",
            "The declaration was filed again by the broker.",
        ),
    ),
    "missed_pickup": Page(
        "Missed pickups",
        "A missed pickup is a collection that did not happen. Nobody came to collect the pallets, "
        "the driver did not show up, the goods were not ready, the ramp was closed, the order "
        "never reached the driver, or the truck left the shipper without loading. It does not "
        "matter whose fault it was. The goods are still with the shipper, and that is the point.",
        "If the goods were loaded and are late on the road, it is a delivery_delay. If the "
        "message says pickup went fine or collected on time, the pickup is only mentioned in "
        "passing. A delivery that is late because the pickup was missed the day before stays a "
        "missed_pickup: the cause wins.",
        "Book a new collection at once and ask the shipper until when the ramp is open. Most "
        "shippers can load on the next day, so tomorrow and within 24 h are what you will write "
        "most often.",
        (
            "A new truck was booked and loaded on the next morning.",
            "The shipper opened the ramp late for us.",
            "The collection order was sent to the right driver.",
            "The shipper was charged for the empty run.",
        ),
    ),
    "damaged_goods": Page(
        "Damage",
        "Damaged goods are goods that came to harm on the way: a carton is crushed, a pallet fell "
        "off the forklift, bottles are broken inside the box, there is water damage on the "
        "cartons, the wrapping is torn and the goods are dented. A claim for breakage and a note "
        "of damage on the POD belong here as well.",
        "Frozen goods that are thawing are harmed by warmth, so they are a temperature_deviation. "
        "Damaged goods that are already on the way back to the shipper are a return_to_sender, "
        "because the claim is then the shipper's affair. No damage seen and packaging looks fine "
        "say that the goods are whole.",
        "Ask for photos of the goods, of the packaging and of the label, and keep the packaging "
        "until the claim is closed. Tell the shipper before the customer does. The ETA is often "
        "unknown, since nobody knows when a replacement will leave.",
        (
            "Photos came in and the claim went to the carrier.",
            "Two cartons were replaced and the rest was kept.",
            "The insurer sent an expert to the depot.",
            "The receiver kept the goods at a lower price.",
        ),
    ),
    "documents_missing": Page(
        "Missing papers",
        "Documents missing means that the goods could go on if a paper were there. The commercial "
        "invoice is missing, the packing list is not attached, there is no CMR in the truck, the "
        "bill of lading was not received, the certificate of origin is missing, the document "
        "pouch is empty. The remedy is always the same: somebody has to send a paper.",
        "When a dangerous goods note or another hazmat paper is missing, the message goes down as "
        "dangerous_goods, because only the safety adviser may repair it. When customs keeps the "
        "goods for duty or for a check and no paper is named, it is a customs_hold. Papers are "
        "complete and all documents are on file tell you to look elsewhere.",
        "Write to the shipper, name the paper, and ask for a scan now and the original by "
        "courier. When the scan is enough, the goods move tomorrow. When the original is needed, "
        "expect three to five days.",
        (
            "The shipper sent a scan and the truck could leave.",
            "The papers were found in the cabin and handed over.",
            "The original came by courier.",
            "The broker accepted a copy this once.",
        ),
    ),
    "lost_parcel": Page(
        "Lost parcels",
        "A lost parcel is a piece that nobody can find. The parcel cannot be found in the depot, "
        "there is no scan since the last hub, a tracer was opened, the stock check is done and it "
        "is not there, or the track shows delivered but the customer never got it. We do not wait "
        "for proof; one clear sentence is enough.",
        "A customer who only asks where the order is has sent a status_request. A truck that is "
        "late with all its pieces on board is a delivery_delay. All pieces are counted and every "
        "piece was scanned mean that nothing is lost.",
        "Open a tracer, ask the last depot that scanned the piece for a floor search, and ask the "
        "customer for the look and content of the box. The bucket is unknown unless the message "
        "names a date for the end of the search.",
        (
            "The box was found behind the belt and went out again.",
            "The search ended without a result and the claim was paid.",
            "A neighbour had taken the parcel in.",
            "The tracer was closed after the second floor search.",
        ),
    ),
    "return_to_sender": Page(
        "Returns",
        "Return to sender is every message that says the goods turn round. The receiver refused "
        "the goods, the third attempt failed, a parcel was unclaimed at the parcel shop, a return "
        "label is printed, or the shipper asks us to bring the goods back. From that moment the "
        "shipper is our customer.",
        "A wrong address alone is not a return; as long as the driver will try again it is an "
        "address_issue. Damage alone is not a return either. No return wanted and customer keeps "
        "the goods say that the goods stay where they are.",
        "Ask the shipper who pays the return leg, book it, and give the shipper the day on which "
        "the goods come home. Returns travel with the slow linehaul, so three to five days or "
        "next week are usual.",
        (
            "The shipper paid the return leg and got the goods.",
            "The return label was sent to the shop.",
            "The goods were sold again from our depot.",
            "The shipper asked for one more attempt, which was too late.",
        ),
    ),
    "rolled_booking": Page(
        "Rolled bookings",
        "A rolled booking is space that we had on a vessel or a flight and lost. The container "
        "was rolled by the line, the vessel is overbooked, the cut-off was missed, the sailing "
        "was blanked, the port call is skipped. The goods wait in the port for the next sailing.",
        "A ferry that leaves late with our trailer on board is a delivery_delay. Vessel sailed as "
        "booked and booking is confirmed mean that nothing was rolled. When the message says "
        "delayed and rolled in one breath, rolled_booking wins.",
        "Ask the line for the next vessel and its cut-off, and book it before you write to the "
        "customer. The next sailing is a week away on most lanes, which is why next week and in "
        "about a week are so common here.",
        (
            "The line gave us space on the next vessel.",
            "We moved the load to another line at the same price.",
            "The customer took half of the goods by air.",
            "The booking was rolled a second time and we claimed the storage.",
        ),
    ),
    "temperature_deviation": Page(
        "Temperature",
        "A temperature deviation is cold cargo that is too warm, or that was. The reefer shows "
        "12 C instead of 4 C, the temperature is above the limit, the cold chain was broken, the "
        "logger gave an alarm, the cooling unit failed, frozen goods are thawing, the reefer unit "
        "has no power. Minutes count.",
        "If warmth and damage are in one message, the warmth came first and the category is "
        "temperature_deviation. Temperature is fine and no cooling needed are remarks and not "
        "alarms.",
        "Call the driver at once and have the set temperature and the probe read out. Find the "
        "nearest depot with a cold room. Nobody but the quality team decides whether the goods "
        "may still be sold.",
        (
            "The unit was restarted and the probe went down to 4 C.",
            "The load was moved to another reefer in an hour.",
            "The quality team took samples and released the goods.",
            "Half of the load was destroyed after the check.",
        ),
    ),
    "dangerous_goods": Page(
        "Dangerous goods",
        "This category is for hazmat that is not in order: dangerous goods not declared, a UN "
        "number that is missing or wrong, a hazmat label that is missing, lithium batteries that "
        "nobody declared, a load that needs an ADR driver. The load stops until the safety "
        "adviser says that it may go.",
        "A message that says not dangerous goods or no hazmat in this load only rules it out. A "
        "missing paper is dangerous_goods when it is a dangerous goods paper and "
        "documents_missing when it is any other paper.",
        "Do not move the load and do not open it. Send the message to the safety adviser with the "
        "UN number, the class and the weight, as far as they are known. A missing label is put "
        "right tomorrow; a wrong declaration takes three to five days.",
        (
            "The safety adviser signed the note and the load went on.",
            "The shipper sent new labels for all cartons.",
            "An ADR driver took over the trailer.",
            "The batteries were packed again by the shipper.",
        ),
    ),
}

RULE_REASONS = {
    ("customs_hold", "documents_missing"): (
        "Customs will not let go until the paper is there, and the paper is the part that we can "
        "do something about."
    ),
    ("damaged_goods", "return_to_sender"): (
        "Goods that have turned round are the shipper's again, and the damage is settled when "
        "they are home."
    ),
    ("delivery_delay", "address_issue"): (
        "The delay will not end before the address is right, and a clerk who files a delay will "
        "only wait."
    ),
    ("damaged_goods", "temperature_deviation"): (
        "The quality team has to see every load that was warm, and it only reads the temperature "
        "queue."
    ),
    ("status_request", "lost_parcel"): (
        "The writer asks politely, but a search has to start, and a plain answer would not start "
        "one."
    ),
    ("delivery_delay", "rolled_booking"): (
        "A booking that was rolled needs new space; a delay needs nothing but patience."
    ),
    ("documents_missing", "dangerous_goods"): (
        "Only the safety adviser may touch hazmat, and the adviser reads one queue."
    ),
    ("delivery_delay", "missed_pickup"): (
        "The goods are still with the shipper, so a new collection has to be booked before any "
        "new delivery time makes sense."
    ),
}

ANSWER_FORMAT = (
    "The sorter answers with one line of JSON and nothing else. There are two keys, category and "
    'eta, in this order, with double quotes and no spaces: {"category":"customs_hold",'
    '"eta":"3-5d"}. No greeting, no reason, no full stop at the end. An answer with a comma too '
    "many, with single quotes, or with another key is refused by the portal and the message goes "
    "back to a person.",
    "There are twelve categories and five buckets. A message has exactly one of each, also when "
    "two categories seem to fit; the pages on unclear cases say which one wins. There is no "
    "category for the rest. When you cannot tell, read the message again and ask what has to "
    "happen first for the goods to move.",
    "The channel does not matter for the answer. A customer writes whole sentences and a driver "
    "writes without a capital letter, but Held by customs and held by customs are the same "
    "thing. Spelling does not matter either.",
)

ETA_PAGES = {
    "today": (
        "The bucket today is for everything that will be over before midnight. Out for delivery, "
        "this afternoon, this aft, tonight, by end of day and within the hour are all today. So "
        "is any hour of the same day, such as today before 16:00. It does not matter how late in "
        "the day the message is written."
    ),
    "1-2d": (
        "The bucket 1-2d is for tomorrow and the day after. People write tomorrow in many ways: "
        "tmrw, tmrw am, tomorrow noon, tomorrow morning. Within 24 h and within 48 h are 1-2d as "
        "well, and so is in a day or two. When a weekday is named with two days in brackets, the "
        "brackets decide."
    ),
    "3-5d": (
        "The bucket 3-5d is for three, four and five days. In three days, in four days, in five "
        "days, within 72 h, within 96 h and three to five days belong here. In under a week is "
        "3-5d by agreement, since a week would be more. When a weekday is named with a number of "
        "days, count by the number and not by the weekday."
    ),
    "6-10d": (
        "The bucket 6-10d is for six to ten days. Next week is always 6-10d, also when it is "
        "written on a Friday; we agreed on this so that nobody has to look at the calendar. In "
        "about a week, in more than a week, not before next week, in eight days, in nine days and "
        "within ten days go here too."
    ),
    "unknown": (
        "The bucket unknown is for messages that name no end. No date yet, ETA unknown, ETA tba, "
        "ETA to be advised, cannot say when, date is still open and no new date so far are the "
        "usual words. A message that says nothing at all about the end is unknown too, and that "
        "is no mistake of the writer. Do not guess from the category."
    ),
}

PAST_DATES = (
    "A date in the past is not an ETA. Was due three days ago, waiting since Monday, was promised "
    "for last Friday, booked last week and was planned for yesterday tell us how long somebody "
    "has waited, and the bucket does not look back. If the message then says tomorrow, the bucket "
    "is 1-2d; if it says nothing more, the bucket is unknown."
)
