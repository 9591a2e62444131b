"""The words of the desk: categories, ETA phrases, carriers, and the rules for unclear cases.

Shipments, preferences and corpus draw from these lists, so that what the corpus teaches is what
the rows test. In a template `[a|b]` is a choice and `{name}` is filled from the scene.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Category:
    """A label of the desk.

    `share` is per mille of all rows, `cues` are clauses that settle the label, `clear` are
    clauses that use its words without meaning it, `etas` weighs the buckets in `ETAS` order and
    `confused` names the labels that a tired clerk picks instead.
    """

    name: str
    share: int
    etas: tuple[int, int, int, int, int]
    confused: tuple[str, ...]
    cues: tuple[str, ...]
    clear: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """What the desk does when a message fits both `first` and `second`: `winner` is one of them."""

    first: str
    second: str
    winner: str


ETAS = ("today", "1-2d", "3-5d", "6-10d", "unknown")

CATEGORIES = (
    Category(
        "delivery_delay",
        214,
        (28, 34, 16, 11, 11),
        ("missed_pickup", "rolled_booking"),
        (
            "[driver|truck] is running late",
            "delivery is [delayed|behind schedule]",
            "stuck in traffic [near|outside] {city}",
            "truck broke down [near|outside] {city}",
            "we will not make the delivery slot",
            "[ferry|train] to {city} is delayed",
            "[held up|slowed down] by [bad weather|fog|roadworks]",
            "linehaul came in late [at|to] {city}",
            "delivery pushed back by the [depot|carrier]",
            "tour is too full and the drop has slipped",
            "late departure from {city}",
            "driver is out of hours and the stop slips",
        ),
        ("truck is on time", "no delay so far"),
    ),
    Category(
        "status_request",
        150,
        (13, 21, 15, 12, 39),
        ("lost_parcel", "delivery_delay"),
        (
            "where is [our|my] [order|shipment]",
            "is there any news on this [order|shipment]",
            "any news on [our|my] [order|shipment]",
            "please [send|advise] the current status",
            "please confirm the status",
            "tracking page shows no update, can you check",
            "can you tell [us|me] where it is",
            "we need a status update for our customer",
            "tracking link does not work",
            "has it left {city} already",
            "what is the latest on this one",
        ),
        ("tracking works", "customer has the status"),
    ),
    Category(
        "address_issue",
        120,
        (18, 33, 19, 9, 21),
        ("return_to_sender", "delivery_delay"),
        (
            "[wrong|incorrect] address on the label",
            "house number is missing",
            "no such street in {city}",
            "consignee has moved to a new site",
            "postcode does not match the [city|street]",
            "address is [incomplete|not found]",
            "name is not on the [door|bell]",
            "no access, the gate code is missing",
            "please change the delivery address to our [shop|site] in {city}",
            "driver cannot find the [building|entrance|dock]",
            "two streets with this name in {city}",
        ),
        ("address is correct", "address was checked"),
    ),
    Category(
        "customs_hold",
        110,
        (6, 20, 30, 24, 20),
        ("documents_missing", "delivery_delay"),
        (
            "[held|stopped|blocked] by customs in {city}",
            "customs wants [an inspection|a check]",
            "[shipment|container] selected for x-ray by customs",
            "customs hold in {city}",
            "waiting for customs [release|clearance]",
            "duty and VAT not paid, goods not released",
            "tariff code [queried|rejected] by the customs office",
            "[import|export] declaration was [rejected|queried]",
            "broker says clearance is [on hold|stopped]",
            "bonded store keeps the goods until duty is paid",
        ),
        ("customs is already cleared", "no customs on this lane"),
    ),
    Category(
        "missed_pickup",
        90,
        (22, 42, 14, 7, 15),
        ("delivery_delay", "documents_missing"),
        (
            "nobody came to collect the [goods|pallets]",
            "[collection|pickup] was missed",
            "driver did not show up for the [pickup|collection]",
            "goods were not ready for [pickup|collection]",
            "pickup failed, the [ramp|warehouse] was closed",
            "shipper was closed, nothing collected",
            "collection order never reached the driver",
            "still waiting for the [collection|pickup] truck",
            "truck left the shipper without loading",
            "no collection again",
        ),
        ("pickup went fine", "collected on time"),
    ),
    Category(
        "damaged_goods",
        80,
        (10, 20, 24, 18, 28),
        ("return_to_sender", "lost_parcel"),
        (
            "[carton|box|pallet] is [crushed|dented]",
            "goods arrived damaged",
            "[pallet|crate] fell off the forklift",
            "[glass|bottles] broken inside the box",
            "water damage on the [cartons|pallet]",
            "receiver reports breakage",
            "packaging ripped and contents scratched",
            "damage noted on the POD",
            "wrapping is torn and goods are dented",
            "claim for breakage, photos attached",
        ),
        ("no damage seen", "packaging looks fine"),
    ),
    Category(
        "documents_missing",
        60,
        (14, 34, 22, 8, 22),
        ("customs_hold", "dangerous_goods"),
        (
            "commercial invoice is missing",
            "packing list not [attached|received]",
            "no CMR [in the truck|with the driver]",
            "bill of lading not received",
            "certificate of origin is missing",
            "papers are [missing|incomplete]",
            "please send the missing [papers|documents]",
            "papers were left at the [shipper|depot]",
            "document pouch is empty",
        ),
        ("papers are complete", "all documents are on file"),
    ),
    Category(
        "lost_parcel",
        50,
        (5, 13, 20, 16, 46),
        ("status_request", "delivery_delay"),
        (
            "parcel cannot be found in the depot",
            "no scan since {city}",
            "parcel is missing and a search has started",
            "[parcel|box] went missing in the hub",
            "tracer opened for a missing [parcel|box]",
            "shows delivered but we never got the parcel",
            "stock check done, parcel is not there",
            "believed lost in transit",
        ),
        ("all pieces are counted", "every piece was scanned"),
    ),
    Category(
        "return_to_sender",
        40,
        (6, 22, 34, 18, 20),
        ("address_issue", "damaged_goods"),
        (
            "going back to the [sender|shipper]",
            "[consignee|receiver] refused the goods",
            "return to sender [requested|booked]",
            "unclaimed at the parcel shop, return booked",
            "please bring the goods back to us",
            "delivery refused, return leg booked",
            "third attempt failed, return to sender",
            "return label is printed",
        ),
        ("no return wanted", "customer keeps the goods"),
    ),
    Category(
        "rolled_booking",
        35,
        (2, 6, 24, 52, 16),
        ("delivery_delay", "missed_pickup"),
        (
            "rolled to the next [vessel|sailing]",
            "container rolled by the line",
            "booking rolled in {city}",
            "vessel is overbooked, no space",
            "cut-off missed, moved to the next sailing",
            "bumped to the next [flight|vessel]",
            "port call at {city} is skipped by the vessel",
            "blank sailing announced, booking moved",
        ),
        ("vessel sailed as booked", "booking is confirmed"),
    ),
    Category(
        "temperature_deviation",
        28,
        (24, 28, 14, 4, 30),
        ("damaged_goods", "delivery_delay"),
        (
            "reefer shows {warm} C instead of 4 C",
            "temperature is [too high|above the limit]",
            "cold chain was broken",
            "temperature logger alarm in the reefer",
            "cooling unit of the reefer [failed|is off]",
            "frozen goods are thawing in the reefer",
            "reefer unit has no power",
            "probe reads above the set temperature",
        ),
        ("temperature is fine", "no cooling needed"),
    ),
    Category(
        "dangerous_goods",
        23,
        (8, 26, 28, 10, 28),
        ("documents_missing", "customs_hold"),
        (
            "dangerous goods, UN number is [missing|wrong]",
            "dangerous goods not declared",
            "dangerous goods note is [missing|not signed]",
            "hazmat label is [missing|wrong]",
            "ADR driver needed for dangerous goods",
            "lithium batteries, dangerous goods not declared",
            "dangerous goods check failed at the dock",
            "hazmat mark for class 3 is missing",
        ),
        ("not dangerous goods", "no hazmat in this load"),
    ),
)

BY_NAME = {category.name: category for category in CATEGORIES}

RULES = (
    Rule("customs_hold", "documents_missing", "documents_missing"),
    Rule("damaged_goods", "return_to_sender", "return_to_sender"),
    Rule("delivery_delay", "address_issue", "address_issue"),
    Rule("damaged_goods", "temperature_deviation", "temperature_deviation"),
    Rule("status_request", "lost_parcel", "lost_parcel"),
    Rule("delivery_delay", "rolled_booking", "rolled_booking"),
    Rule("documents_missing", "dangerous_goods", "dangerous_goods"),
    Rule("delivery_delay", "missed_pickup", "missed_pickup"),
)

WHEN = {
    "today": (
        "today",
        "still today",
        "later today",
        "today before {hour}:00",
        "this [aft|afternoon]",
        "tonight",
        "by end of day",
        "within the hour",
    ),
    "1-2d": (
        "[tmrw|tomorrow]",
        "[tmrw|tomorrow] [morning|am|noon]",
        "within [24|48] h",
        "the day after tomorrow",
        "in a day or two",
        "in [two|two|1-2] days",
        "by {soon} ([two|two|2] days)",
    ),
    "3-5d": (
        "in [three|four|five] days",
        "in [three|four|five|five|3-5] days",
        "in under a week",
        "within [72|96] h",
        "[three to five|three to five|3 to 5] days",
        "by {later} ({later_days} days)",
    ),
    "6-10d": (
        "[nxt|next] week",
        "[early|late] next week",
        "not before next week",
        "in [six|seven|eight|nine] days",
        "in [about|more than] a week",
        "six to ten days",
        "within [10|ten] days",
        "by {far} ({far_days} days)",
    ),
}

WHEN_LEADS = (
    "ETA",
    "new ETA",
    "expected",
    "should be done",
    "[carrier|depot|driver] says",
    "[portal|system] says",
    "planned",
)

UNKNOWN = (
    "no date yet",
    "ETA unknown",
    "no ETA [yet|given]",
    "ETA to be advised",
    "ETA tba",
    "cannot say when",
    "date is still open",
    "no new date so far",
)

PAST = (
    "was due {ago} days ago",
    "waiting since {past}",
    "was promised for last {past}",
    "booked last week",
    "was planned for yesterday",
)

FILLERS = (
    "please inform the customer",
    "call the depot if needed",
    "depot {city} is informed",
    "desk please handle",
    "note for the file",
    "second message on this",
    "priority customer",
    "{carrier} is informed",
    "handled by {carrier}",
    "line {line} waits for these parts",
    "goods are {cargo}",
    "{pieces}, {size}",
    "load is {pieces} of {cargo}",
    "same lane as last time",
    "dock {line} is free",
    "contact is the shift lead",
    "will keep you posted",
    "{ref} is our reference",
    "lane {lane}",
    "{cargo} for a shop opening",
    "part of a larger order",
    "last load of the {cargo}",
    "planner asked twice",
    "key account, handle with care",
    "radio is bad, text only",
    "{size} in total",
    "shared load with two other drops",
    "team lead wants a note",
    "same as in my call earlier",
    "invoice goes to the usual account",
    "please add this to the log",
    "gate {line} is open",
    "crew is ready to unload",
    "forklift is on site",
    "spare trailer stands by",
    "sales asked for this one",
    "customer wants a call back",
    "weekend crew knows about it",
    "this is the {destination} account",
    "photo is in the app",
    "new on this lane",
    "no other stop on the tour",
    "please reply to all",
)

CLOSERS = ("thanks", "regards, [night|early|late] shift", "many thanks", "best regards")

OPENINGS = {
    "email": (
        "Re: {ref} {lane}",
        "FW: {ref}",
        "{ref} {lane}",
        "{carrier} {ref}",
        "Hi team, {ref} {cargo}",
        "Hello desk, {ref} {lane}",
        "{lane} {ref}, {pieces}",
    ),
    "driver": (
        "{ref}",
        "at {city} now",
        "tour {line}, {ref}",
        "{ref}, {pieces}",
        "{pieces} {cargo} for {destination}",
        "stop {line} {destination}",
    ),
    "scanner": (
        "{ref}, {pieces}",
        "{ref}, {size}",
        "hub {city} {ref}",
        "depot {city} dock {line} {ref}",
        "{ref} {lane}",
    ),
    "portal": (
        "Hello",
        "Good morning",
        "Dear desk",
        "About {ref}",
        "Hello, this is about {ref}",
        "We wait for {pieces} of {cargo}",
    ),
}

CHANNELS = (("email", 38), ("driver", 25), ("portal", 24), ("scanner", 13))

CARRIERS = (
    "Bluekeel Lines",
    "Halden Road",
    "Corvo Air",
    "Quickstep Parcel",
    "Tarn Logistics",
    "Ostra Shipping",
    "Kestrel Cargo",
    "Marrow Freight",
)
LATE_CARRIER = "Skua Express"

LANES = (
    ("Rotterdam", "Oslo"),
    ("Hamburg", "Bergen"),
    ("Antwerp", "Leeds"),
    ("Lyon", "Milan"),
    ("Gdansk", "Malmo"),
    ("Porto", "Dublin"),
    ("Madrid", "Hamburg"),
    ("Oslo", "Gdansk"),
    ("Milan", "Rotterdam"),
    ("Leeds", "Antwerp"),
)
LATE_LANE = ("Tallinn", "Porto")

CARGO = (
    "spare parts",
    "textiles",
    "floor tiles",
    "garden chairs",
    "coffee",
    "printed books",
    "bike frames",
    "steel pipes",
    "kitchen doors",
    "paper rolls",
    "toys",
    "shoes",
    "office chairs",
    "paper cups",
    "tea",
    "tools",
    "cables",
    "engine parts",
    "window frames",
    "bed linen",
    "school books",
    "tyres",
    "pumps",
    "carpets",
    "lamps",
    "wine",
    "cheese",
    "fish",
)

ABBREVIATIONS = {
    "shipment": "shpt",
    "delivery": "dlvry",
    "customer": "cust",
    "consignee": "cnee",
    "please": "pls",
    "without": "w/o",
    "tomorrow": "tmrw",
    "next": "nxt",
    "documents": "docs",
    "temperature": "temp",
    "container": "cntr",
    "warehouse": "whse",
    "received": "rcvd",
    "thanks": "thx",
    "afternoon": "aft",
    "expected": "exp",
    "reference": "ref",
    "collection": "coll",
    "regards": "rgds",
}

MISSPELT = {
    "address": "adress",
    "customs": "cutoms",
    "damaged": "dammaged",
    "delivery": "delivry",
    "delayed": "delayd",
    "collect": "colect",
    "pickup": "pikup",
    "parcel": "parcle",
    "pallet": "palet",
    "pallets": "palets",
    "missing": "mising",
    "received": "recieved",
    "driver": "drvier",
    "truck": "truk",
    "customer": "custmer",
    "please": "plese",
    "informed": "infromed",
    "vessel": "vesel",
    "booking": "boking",
    "temperature": "temprature",
    "sender": "sendr",
    "status": "staus",
    "order": "oder",
    "shipment": "shipmnt",
    "tomorrow": "tommorow",
    "depot": "deopt",
    "label": "lable",
    "papers": "papres",
    "invoice": "invoise",
    "goods": "godos",
    "handle": "handel",
    "waiting": "waitng",
    "carrier": "carier",
    "clearance": "clearence",
    "refused": "refussed",
    "loading": "loding",
    "today": "tody",
    "days": "dys",
    "week": "weeek",
    "planned": "planed",
    "expected": "expcted",
    "this": "tihs",
    "the": "teh",
    "is": "si",
    "not": "nto",
    "and": "adn",
    "says": "syas",
    "with": "wiht",
    "name": "naem",
    "lane": "laen",
    "load": "laod",
    "priority": "prioirty",
    "parts": "prats",
}
