"""What is taken for personal data, and what is not."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.dataset import privacy, strict_json
from tasks.dataset.faults import RowError

FOUND = {
    "email": [
        "anna.berg@example.com",
        "m.rossi+freight@example.com",
        "import-desk@customs.example.org",
        "o'byrne@example.co.uk",
        "ÜMIT@example.com",
    ],
    "phone": [
        "+44 7700 900123",
        "07700 900456",
        "020 7946 0735",
        "01632 960042",
        "+1 202 555 0143",
        "(202) 555-0177",
        "+1-312-555-0109",
        "312-555-0164",
        "202.555.0143",
        "+49 30 23125 014",
        "030 23125 117",
        "+49 (0)171 39200 25",
        "0044 20 7946 0018",
        "07700900789",
        "+447700900123",
        "00492211234567",
    ],
    "iban": [
        "GB82 WEST 1234 5698 7654 32",
        "DE89370400440532013000",
        "NL91 ABNA 0417 1643 00",
        "nl91 abna 0417 1643 00",
        "NO9386011117947",
        "BE68-5390-0754-7034",
        "FR14 2004 1010 0505 0001 3M02 606",
    ],
    "card": [
        "4111 1111 1111 1111",
        "5555-5555-5555-4444",
        "378282246310005",
        "6011 1111 1111 1117",
        "3056 930902 5904",
        "4111.1111.1111.1111",
    ],
    "national_id": [
        "536-90-4399",
        "912-90-3456",
        "AB 12 34 56 C",
        "54362315-K",
        "X-2482300-W",
        "RSSMRA85T10A562S",
        "2 95 10 99 126 111 93",
        "85.07.30-033.28",
        "756.9217.0769.85",
        "880320-0016",
        "131052-308T",
        "161175-19997",
        "710319/2745",
        "151086 95088",
        "390.533.447-05",
        "12.531.909-2",
        "360426199101010071",
        "971013-9019902",
        "3-1006-00445-63-5",
        "BOXW310820HNERXN09",
    ],
    "ip": [
        "10.0.0.1",
        "127.0.0.1",
        "192.168.100.200",
        "8.8.8.8",
        "::1",
        "fe80::1",
        "2001:db8::8a2e:370:7334",
        "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
        "::ffff:192.0.2.128",
    ],
    "secret": [
        *("AKIA" + "IOSFODNN7EXAMPLE", "ghp_" + "a1B2" * 9, "github_pat_" + "a1B2" * 9),
        *("glpat-" + "abcdefghij1234567890", "xoxb-" + "123456789012-abcdefABCDEF"),
        *("sk_live_" + "a1" * 12, "rk_test_" + "a1" * 12, "AIza" + "Sy1" * 11 + "ab"),
        *("sk-" + "proj-abcd1234efgh5678ijkl", "sk-" + "ant-api03-" + "aB3" * 12),
        *("hf_" + "abcDEF12" * 4, "npm_" + "a1B2" * 9, "pypi-" + "AgEIcHlwaS5vcmc" + "a1" * 40),
        "SG." + "a1B2" * 5 + "ab." + "a1B2" * 10 + "abc",
        "AC" + "0a1b2c3d" * 4,
        "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n+44 7700 900123\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN OPENSSH PRIVATE KEY-----b3BlbnNzaC1r-----END OPENSSH PRIVATE KEY-----",
    ],
}

TOLD = {
    "password=hunter2": "password=[secret]",
    "Password: hunter2!": "Password: [secret]!",
    "the password is hunter22.": "the password is [secret].",
    "db_password = 'correct-horse'": "db_password = '[secret]'",
    'my "api_key": "abc12345x"': 'my "api_key": "[secret]"',
    "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG": "AWS_SECRET_ACCESS_KEY=[secret]",
    "//registry.npmjs.org/:_authToken=3f2504e0-4f89-41d3-9a0c": (
        "//registry.npmjs.org/:_authToken=[secret]"
    ),
    "https://anna:pa55w0rd@example.com/x": "https://anna:[secret]@example.com/x",
    "Authorization: Bearer abcdef1234567890abcdef": "Authorization: Bearer [secret]",
    "Authorization: Basic dXNlcjpwYXNzd29yZA==": "Authorization: Basic [secret]",
    "pw: hunter22": "pw: [secret]",
    "mot de passe: Tr0ub4dor": "mot de passe: [secret]",
    "password: correct horse battery staple": "password: [secret]",
    'passphrase: "Correct horse battery staple"': 'passphrase: "[secret]"',
    "my social is 536 90 4399": "my social is [national_id]",
    "national insurance AB123456C": "national insurance [national_id]",
    "DNI: 54362315K, NIE X2482300W": "DNI: [national_id], NIE [national_id]",
    "SIN 123-456-782": "SIN [national_id]",
    "NRIC 770305-02-1234": "NRIC [national_id]",
    "PAN: ACUPA7085R": "PAN: [national_id]",
    "my ssn is 536904399": "my ssn is [national_id]",
    "BSN: 111222333": "BSN: [national_id]",
    "PESEL number 44051401359": "PESEL number [national_id]",
    "Steuer-ID 36574261809": "Steuer-ID [national_id]",
    "NHS no. 9434765870": "NHS no. [national_id]",
    "Aadhaar 2341 2341 2346": "Aadhaar [national_id]",
    "national id 1630615123457": "national id [national_id]",
}


@pytest.mark.parametrize("text", TOLD)
def test_finds_what_a_word_beside_it_gives_away(text: str) -> None:
    assert privacy.redact(text)[0] == TOLD[text]


@pytest.mark.parametrize(
    ("kind", "value"), [(kind, value) for kind, values in FOUND.items() for value in values]
)
def test_finds_personal_data(kind: str, value: str) -> None:
    for text in (
        value,
        f"pay to {value}.",
        f"({value}), then 12 pallets",
        f"'{value}'",
        f"call:\n{value}\tnow",
    ):
        assert privacy.redact(text) == (text.replace(value, f"[{kind}]"), {kind: 1})


PIECES = [
    *(value for values in FOUND.values() for value in values),
    *(" ", "0", "1", ".", "-", "/", "a", "+", "(", ")", "@"),
]

NOTHING = [
    "order 59896, AWB 80263, NFDU 28707, ref 90210",
    "12,160 KGS, 4.5 cbm, 300 x 200 x 150 cm",
    "received 2026-08-31T10:16:00Z, due 01.09.2026 10:30, or 31/08/2026 1200",
    "container MSKU 907032 3, seal 4410982",
    "GB82 WEST 1234 5698 7654 33",  # mod 97 fails
    "DE00370400440532013000",
    "4111 1111 1111 1112",  # Luhn fails
    "1234567812345670",  # Luhn holds, but no issuer begins with 1
    "tracking 00340434161094015902",
    "invoice 00012345678",
    "a@b",
    "meet @ 10:30",
    "version 3.11.7, build 20260831",
    "1,234,567,890",
    "0.1234567890123",
    "within 24 h or 3-5 days (2 days)",
    "UN 1263, class 3",
    "order 111222333, parcel 536904399, container MSKU 9070323, AWB 44051401359",
    "tracking 1Z999AA10123456784, RR123456785GB, booking 12345678A, PO AB12345",
    "order 536-904-399, lot 85.07.30, 31.12.2026-001.99",
    "the ssn is missing, 536904398 pallets",
    "v1.2.3.4, version 1.2.3.4, firmware: 10.0.0.1, section 4.2.1.3",
    "1.2.3, 1.2.3.4.5, 300.1.1.1, 01.09.2026",
    "std::vector, a::b, 10:16:00, 00:1b:44:11:3a:b7",
    "password: please reset it",
    "my password is not working, the token is expired",
    "max_tokens: 256, key: value, keyboard=qwerty, compass: north-east",
    "password=[secret] password=<your password> password: ${PASSWORD}",
    "d41d8cd98f00b204e9800998ecf8427e, 3f2504e0-4f89-41d3-9a0c-0305e82c3301",
    "temperature_deviation, documents_missing, risk-assessment-of-the-desk-2026",
    "Bearer of bad news, basic information",
    *("password: minimum-8-characters", "Your secret=optional", "pass: all-clear"),
    *("token: ABC12345 for the cloakroom", "Secret: top-floor", "secret_name: my-app-config"),
    *("password_reset_url=/reset", "password=getpass()", "secret=self.secret"),
    *("sk-learn-classifier-pipeline-v2-model", "secret_id=3f2504e0-4f89-41d3"),
    *("SKU 012-345-6789", "Part no. 0123-4567-89", "UPC 036000291452", "ISBN 0306406152"),
    *("FedEx 0201 2345 6789", "AWB 020-12345675", "+48.8588897, -002.3200410"),
    *("IMEI 490154203237518", "490154203237518", "IMEI: 4111111111111111"),
    "refund to DE89 3704 0044 0532 0130 01",
    *("nginx 1.25.3.1", "Upgrade from 2.0.1.5 to 2.0.2.1"),
    *("icon@2x.jpg", "pkg@1.2.3.tar.gz", "git@github.com:org/project.git"),
    *("article 123.456.789-09", "AB123456C", "12345678Z", "ticket 770305-02-1234"),
    *("lot 131052-308T", "770305-02-1234", "123-456-782"),
]


@pytest.mark.parametrize("text", NOTHING)
def test_leaves_other_numbers_alone(text: str) -> None:
    assert privacy.redact(text) == (text, {})


@pytest.mark.parametrize("name", ["0123456789", "row 020 7946 0735", "10.0.0.1", "AB123456C"])
def test_a_name_without_proof_is_no_personal_data(name: str) -> None:
    assert privacy.find_in_name(name) == []


@pytest.mark.parametrize("kind", ["email", "iban", "card", "national_id", "secret"])
def test_a_name_with_proof_is_personal_data(kind: str) -> None:
    for value in FOUND[kind]:
        assert [finding.kind for finding in privacy.find_in_name(value)] == [kind]


def test_the_stronger_proof_wins() -> None:
    text = "NL91 ABNA 0417 1643 00 and 4111 1111 1111 1111"
    assert [finding.kind for finding in privacy.find(text)] == ["iban", "card"]
    assert privacy.redact(text, ["phone"]) == (text, {})


def test_a_card_among_other_digits() -> None:
    assert privacy.redact("ref 12 4111 1111 1111 1111 99")[0] == "ref 12 [card] 99"


def test_redacts_only_what_it_is_told_to() -> None:
    text = "a@example.com or +44 7700 900123"
    assert privacy.redact(text, ["email"]) == ("[email] or +44 7700 900123", {"email": 1})


@settings(deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_nothing_is_left_to_find(text: str) -> None:
    cleaned, _ = privacy.redact(text)
    assert not privacy.find(cleaned)


def test_json_stays_json() -> None:
    answer = json.dumps({"note": "ask\nanna@example.com", "x": ["07700 900456", 1]})
    cleaned, found = privacy.redact_json(answer, privacy.KINDS)
    assert json.loads(cleaned) == {"note": "ask\n[email]", "x": ["[phone]", 1]}
    assert found == {"email": 1, "phone": 1}
    untouched = '{ "a" :  1 }'
    assert privacy.redact_json(untouched, privacy.KINDS)[0] == untouched
    assert privacy.redact_json("{broken a@example.com", privacy.KINDS)[0] == "{broken [email]"


@pytest.mark.parametrize("value", [value for values in FOUND.values() for value in values])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_a_snippet_shows_none_of_it(value: str, encoding: str) -> None:
    raw = json.dumps({"t": f"x\n{value}"}, ensure_ascii=False).encode(encoding)
    shown = privacy.snippet(raw)
    assert value not in shown
    assert not any(part in shown for part in re.split(r"[@\s]", value) if len(part) > 6)


def test_a_snippet_shows_no_password() -> None:
    for row in ({"password": "hunter"}, {"t": "password=hunter"}, {"t": "token: hunter"}):
        assert "hunter" not in privacy.snippet(json.dumps(row))
        assert "hunter" not in privacy.snippet(json.dumps(json.dumps(row)))
    cut = json.dumps({"t": "-----BEGIN PRIVATE KEY-----\nMIIEow"})
    assert privacy.snippet(cut) == '{"t": "[secret]'


def test_what_is_not_suspicious_holds_nothing() -> None:
    """`find` asks first, so a value that the question misses is never found."""
    for values in FOUND.values():
        for value in values:
            assert privacy.suspicious(f"see {value} here")
    assert not privacy.suspicious("Message: order 59896 is held by customs.\nLabel:")


@settings(deadline=None)
@given(st.lists(st.sampled_from([*PIECES, *TOLD, *NOTHING]), max_size=4).map(" ".join))
def test_many_texts_are_screened_as_one_is(text: str) -> None:
    texts = [text, text.upper(), text.replace(" ", "\u00a0"), "nothing here"]
    flags = privacy.screen(texts)
    for text, flag in zip(texts, flags, strict=True):
        assert flag or not privacy.find(text)
    assert not flags[-1]


def test_the_plugins_of_detect_secrets_are_there() -> None:
    discord = "MTk4NjIyNDgzNDcxOTI1MjQ4.Cl2FMQ." + "ZnCjm1XVW7vRze4b7Cq4se7kKWs"
    telegram = "110201543:AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw1"
    for value in (discord, telegram):
        assert privacy.redact(f"bot {value} on")[0] == "bot [secret] on"


def test_the_shipped_data_holds_what_its_readme_says(root: Path) -> None:
    raw = root / "data/raw"
    page = (raw / "README.md").read_text(encoding="utf-8")
    for path in sorted(raw.glob("*.jsonl")):
        found: Counter[str] = Counter()
        for line in path.read_bytes().splitlines():
            try:
                row = strict_json.parse(line.decode())
            except (RowError, UnicodeDecodeError):
                continue
            texts = row.values() if isinstance(row, dict) else []
            for text in texts:
                if isinstance(text, str):
                    found.update(finding.kind for finding in privacy.find(text))
        planted = re.findall(rf"^\| `(\w+)` \| {path.name} \| (\d+) \|", page, re.MULTILINE)
        expected = {kind: int(count) for kind, count in planted if kind in privacy.KINDS}
        assert found == expected, path


def test_a_snippet_is_short_and_fit_to_print() -> None:
    assert privacy.snippet(b"ab\xff\x00\n\x1b[31m" + b"c" * 100).startswith("ab\\xff")
    assert len(privacy.snippet("ä" * 1000)) == privacy.SNIPPET_CHARACTERS
    assert privacy.snippet("\ud800") == "\\ud800"
    escaped = '{"t":"anna\\u0040example.com"}'
    assert "example" not in privacy.snippet(escaped)
    nearly = "GB82 WEST 1234 5698 7654 33 and 4111 1111 1111 1112"
    assert privacy.snippet(nearly) == "[account] and [digits]"


def test_a_long_text_is_searched_in_linear_time() -> None:
    import time

    start = time.process_time()
    for text in (
        "1 " * 100_000,
        "a." * 100_000 + "@",
        "+1" * 100_000,
        "AD12 " * 40_000,
        "0" * 200_000,
        "A" * 200_000,
        "pass" * 50_000,
        "key=" * 50_000,
        "a-1" * 60_000,
        "-----BEGIN A-----" * 10_000,
        "1.2.3." * 30_000,
        "ab:" * 60_000,
        "1 2 3 4 5 " * 20_000,
        "eyJ" * 60_000,
        "://a:" * 40_000,
    ):
        privacy.find(text)
    assert time.process_time() - start < 10
