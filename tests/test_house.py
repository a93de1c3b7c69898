"""Promises that hold for the repository as a whole."""

from __future__ import annotations

import ast
import io
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from tests.conftest import ROOT


def test_the_client_imports_nothing_heavy() -> None:
    """`import sealserve.client` needs five third-party packages and what they bring themselves."""
    code = (
        "import sys, sealserve.client\n"
        "print('\\n'.join(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    listed = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True
    )
    loaded = set(listed.stdout.split())
    heavy = {
        "openvino", "tensorflow", "pydantic", "yaml", "typer", "click", "rich", "structlog",
        "sqlalchemy", "alembic", "starlette", "uvicorn", "orjson", "mfusepy", "PIL", "skimage",
    }  # fmt: skip
    assert not loaded & heavy


@pytest.mark.parametrize("package", ["serving", "broker", "volume", "guest", "model", "simulator"])
def test_importing_a_package_does_no_work(package: str) -> None:
    """No import starts a thread or opens a file for writing."""
    code = (
        "import sys, threading\n"
        "def watch(event, args):\n"
        "    if event == 'open' and isinstance(args[1], str) and set(args[1]) & set('wax+'):\n"
        "        raise SystemExit(f'opened {args[0]} for writing')\n"
        "sys.dont_write_bytecode = True\n"
        "sys.addaudithook(watch)\n"
        f"import sealserve.{package}\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def test_generated_messages_match_their_definitions(tmp_path: Path) -> None:
    """`make wire` would change nothing."""
    wire = ROOT / "src" / "sealserve" / "wire"
    copy = tmp_path / "sealserve" / "wire"
    shutil.copytree(wire, copy)
    generated = sorted(p.relative_to(wire) for p in wire.rglob("*_pb2.py*"))
    for path in generated:
        (copy / path).unlink()
    subprocess.run([copy / "generate.sh", sys.executable], check=True)
    assert sorted(p.relative_to(copy) for p in copy.rglob("*_pb2.py*")) == generated
    for path in generated:
        assert (copy / path).read_bytes() == (wire / path).read_bytes(), path


def test_tensorflow_is_not_installed_beside_us() -> None:
    """The main environment has no TensorFlow or PyTorch: what passes here needs neither."""
    code = "import importlib.util as u; print(u.find_spec('tensorflow'), u.find_spec('torch'))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["None", "None"]


@pytest.mark.parametrize("order", ["sealserve first", "tensorflow first"])
def test_tensorflow_can_be_imported_in_the_same_process(oracle: Path, order: str) -> None:
    """Both register tensorflow.TensorProto; the private pool keeps them apart."""
    ours = "from sealserve.wire.serving import api_pb2 as ours"
    theirs = "from tensorflow_serving.apis import predict_pb2 as theirs"
    lines = [ours, theirs] if order == "sealserve first" else [theirs, ours]
    check = (
        "request = ours.PredictRequest(); request.model_spec.name = 'm'\n"
        "request.inputs['x'].float_val.extend([1.0, 2.0])\n"
        "other = theirs.PredictRequest.FromString(request.SerializeToString())\n"
        "assert list(other.inputs['x'].float_val) == [1.0, 2.0] and other.model_spec.name == 'm'\n"
    )
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n" + "\n".join([*lines, check])
    subprocess.run([oracle, "-c", code], check=True, env={"TF_CPP_MIN_LOG_LEVEL": "3"})


def test_each_system_package_is_named_with_its_purpose() -> None:
    """An apostrophe in a purpose once ended the list, and every make target with it."""
    script = (ROOT / "scripts" / "system-packages.sh").read_text()
    lists = script[script.index("product()") : script.index("python=")]
    shown = subprocess.run(
        ["sh", "-euc", f"{lists}\nproduct\ntests"], capture_output=True, text=True, check=True
    )
    assert shown.stderr == ""
    rows = shown.stdout.splitlines()
    assert len(rows) > 12
    assert all(len(row.split()) >= 4 for row in rows)


def test_the_data_path_of_volumes_stays_small() -> None:
    """Engine, cipher, verity and parser hold what an attacker touches first: 800 lines of code."""
    names = ("engine", "cipher", "verity", "luks2", "strict")
    paths = (ROOT / "src" / "sealserve" / "volume" / f"{name}.py" for name in names)
    assert sum(_lines_of_code(path.read_text()) for path in paths) <= 800


def _lines_of_code(text: str) -> int:
    """Without blanks, comments and docstrings: whatever is left once it was parsed."""
    tree = ast.parse(text)
    strings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for line in range(node.lineno, (node.end_lineno or 0) + 1)
    }
    silent = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
        tokenize.ENDMARKER,
    }  # fmt: skip
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    spoken = {
        line
        for token in tokens
        if token.type not in silent
        for line in range(token.start[0], token.end[0] + 1)
    }
    return len(spoken - strings)
