"""Credentials in texts for people: removed at any place, without other text."""

import pytest

from fmscale.text import printable, printable_lines, scrub


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("cannot open postgres://ann:s3cr3t@db/x", "s3cr3t"),
        ("GET https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIAABCDEFGHIJKLMNOP%2F2026&a=1", "AKIAABCD"),
        ("https://h/k?X-Amz-Signature=0f1e2d3c&x=1", "0f1e2d3c"),
        ("https://h/k?X-Amz-Security-Token=IQoJb3JpZ2luX2VjEJ3%2F&x=1", "IQoJb3"),
        ("https://a.blob.core.windows.net/c?sv=1&sig=Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5%3D", "Zm9vYmFy"),
        ("{'aws_secret_access_key': 'wJalrXUtnFEMI'}", "wJalrXUtnFEMI"),
        ("password: hunter22", "hunter22"),
        ("Authorization: Bearer abcdef0123456789", "abcdef0123456789"),
        ("api_key=sk-1234567890abcdef", "sk-1234567890"),
        ("AccountName=me;AccountKey=Zm9vYmFyYmF6cXV4Mg==;EndpointSuffix=x", "Zm9vYmFyYmF6cXV4Mg"),
        ("failed with headers {'authorization': 'bearer eyJhbGciOiJIUzI1NiJ9.e30'}", "eyJhbGci"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "MIIE"),
        ("the value was v3ry-long-thing here", "v3ry-long-thing"),
    ],
)
def test_credentials_are_taken_out(text: str, secret: str) -> None:
    assert secret in text
    clean = scrub(text, {"MY_TOKEN": "v3ry-long-thing"})
    assert secret not in clean
    assert "***" in clean


@pytest.mark.parametrize(
    "text",
    [
        "tokens=123456789012345678901234 tokenizer: bpe:8192",
        "token = tokens[position]",
        "s3://bucket/prefix?endpoint=http://127.0.0.1:8333&region=us-east-1",
        "eos_token: 50256, signatures 5, key=value",
        "the folder /tmp was there",
    ],
)
def test_the_rest_is_left_alone(text: str) -> None:
    assert scrub(text, {"HF_TOKEN_DIR": "/tmp", "A_TOKEN": "key", "PATH": "123456789012345678901234"}) == text


def test_letters_of_every_script_stay_and_what_steers_a_terminal_is_escaped() -> None:
    kept = "naïve 文書\u3000क\u094d\u200dष می\u200cخواهم 👩\u200d🔬 \u00a0x"
    assert printable(kept) == kept
    assert (
        printable("a\x1b[2Jb\r\u202ec\x9bd\u2028e\udcc3\x7f\ufeff") == r"a\x1b[2Jb\r\u202ec\x9bd\u2028e\udcc3\x7f\ufeff"
    )
    assert printable_lines("a\tb\n\x1b[2J") == "a\tb\n\\x1b[2J"
