"""Coverage-guided fuzzing of the codec: it and msgspec agree on what is JSON, and it never does worse than refuse."""

import sys

import atheris

with atheris.instrument_imports(include=["pfcore"]):
    import msgspec

    from pfcore.errors import InvalidPacket
    from pfcore.wire.frames import decode_message, encode_message
    from pfcore.wire.scan import validate


def json_by_msgspec(data: bytes) -> bool:
    try:
        msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    except RecursionError:
        return True
    return True


def test_one_input(data: bytes) -> None:
    problem = validate(data, 512)
    if problem is None or problem[1] != "no deeper nesting":
        assert (problem is None) == json_by_msgspec(data), data
    outcomes = []
    for predict in (True, False):
        try:
            outcomes.append(decode_message(data, predict=predict))
        except InvalidPacket as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1], outcomes
    message = outcomes[0]
    if isinstance(message, str):
        return
    assert problem is None
    if message.type == "submit":
        again = decode_message(encode_message("submit", message.seq, message.payload))
        assert again == message or message.payload.data != message.payload.data


atheris.Setup(sys.argv, test_one_input)
atheris.Fuzz()
