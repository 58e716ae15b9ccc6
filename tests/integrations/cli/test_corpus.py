import importlib
import json
import subprocess
import sys

from nimbed_cli.quickstart import standard_library_passages


def test_passages_are_real_docstrings_under_their_own_names():
    passages = {passage.id: passage.text for passage in standard_library_passages(10**6)}
    assert len(passages) > 2000
    for name in ("gzip.decompress", "shutil.copytree", "textwrap.dedent", "json"):
        module, _, rest = name.partition(".")
        thing = importlib.import_module(module)
        for part in filter(None, rest.split(".")):
            thing = getattr(thing, part)
        first_line = thing.__doc__.strip().splitlines()[0].strip()
        assert passages[name].startswith(f"{name}: {first_line}")


def test_passages_are_distinct_public_and_of_decent_length():
    passages = standard_library_passages(10**6)
    assert len({passage.text for passage in passages}) == len(passages)
    for passage in passages:
        words = passage.text.removeprefix(f"{passage.id}: ")
        assert 60 <= len(words) <= 600
        assert not any(
            part.startswith("_") and part != "__init__" for part in passage.id.split(".")
        )


def test_fewer_passages_are_spread_over_the_library():
    few = standard_library_passages(100)
    assert len(few) == 100
    assert len({passage.id.split(".")[0] for passage in few}) > 30


def test_another_process_reads_the_same_and_imports_no_module():
    # Importing antigravity opens a browser, importing this prints a poem.
    code = (
        "import json, sys\n"
        "from nimbed_cli.quickstart import standard_library_passages\n"
        "print(json.dumps([each.text for each in standard_library_passages(100)]))\n"
        "print({'antigravity', 'this', 'turtle', 'smtplib'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    again, imported = result.stdout.splitlines()
    assert json.loads(again) == [passage.text for passage in standard_library_passages(100)]
    assert imported == "set()"
