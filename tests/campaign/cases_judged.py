"""What each shared case must print: a function of its output to '' or to what is wrong.

The keys are the first letter of the folder and the number: `r07` is reliability/07_disk_full.
The sentences of the cases' own expected.txt stand in short beside each.
"""

import ast
import re

REFUSAL = re.compile(r"^tinyflash: .+", re.MULTILINE)
CLOSE = 1e-5  # relative to the spread of the logits; float32 gives about 1e-6


def codes(out):
    """The exit codes that a case reports, in order."""
    return [int(code) for code in re.findall(r"\b(?:rc=|exit )(\d+)", out)]


def numbers(out, before):
    """The numbers that follow a phrase."""
    found = re.findall(re.escape(before) + r"\s*([-+0-9.e]+|inf|nan)", out)
    return [float(number.rstrip(".")) for number in found]


def wrong_codes(out, *wanted):
    """Compare the exit codes; a number stands for itself, a tuple for any of its numbers."""
    seen = codes(out)
    allowed = [code if isinstance(code, tuple) else (code,) for code in wanted]
    if len(seen) != len(allowed) or any(s not in a for s, a in zip(seen, allowed, strict=True)):
        return f"exit codes {seen}, not {list(wanted)}"
    return ""


def never(out, *patterns):
    """The first line in which one of the patterns is found."""
    for line in out.splitlines():
        if any(re.search(pattern, line) for pattern in patterns):
            return ascii(line.strip())[1:100]
    return ""


def close(out, phrase="largest difference / spread of the logits:", refusals=True):
    """Every difference is rounding, or (where that is allowed) the model is refused."""
    found = numbers(out, phrase)
    if refusals and not found and re.search("refuse", out):
        return ""
    bad = [number for number in found if not number <= CLOSE]
    return f"differs by {bad or 'an unknown amount'}" if bad or not found else ""


def same_lines(out, *prefixes):
    """What stands behind each prefix is the same (transformers and tinyflash, say)."""
    said = [re.search(rf"^{prefix}\s*(.*?)\s*$", out, re.MULTILINE).group(1) for prefix in prefixes]
    return "" if len(set(said)) == 1 else f"{said[1][:80]} instead of {said[0][:80]}"


def refused(out):
    """Whether one sentence says why not, from the command or from Python."""
    return bool(REFUSAL.search(out)) or bool(re.search("refuse|not read|is left out|ignored", out))


def interrupts(out):
    """r00: afterwards three texts are right, or the Model must be opened again."""
    lines = re.findall(r"interrupted, afterwards: (\[.*\])", out)
    for line in lines:
        for text in ast.literal_eval(line):
            if text != "right" and "again" not in text:
                return text
    return never(out, "HANGS", "WRONG") or ("" if lines else "nothing was interrupted")


def forks(out):
    """r01: the child works or gets one sentence."""
    children = re.findall(r"child: (.*)", out)
    bad = never(out, "HANGS", "WRONG", "Errno", "Invalid argument")
    return bad or ("" if len(children) == 6 else f"{len(children)} children of 6")


def replaced(out):
    """r02: record refuses to replace what is not a recording."""
    before, after = re.findall(r"([0-9a-f]{64})  m/config.json", out)
    if before != after:
        return "config.json was replaced"
    return wrong_codes(out, 2, 0, 2, 0, 2, 0)


def cleared(out):
    """r03: OUT.part is not deleted, and nothing is written through the link."""
    before, after = re.findall(r"([0-9a-f]{64})  victim", out)
    if before != after:
        return "written through the link"
    return never(out, "o.part is gone", "cannot access") or wrong_codes(out, 2)


def leaks(out):
    """r06: descriptors and kernel slots stay constant."""
    before, after = int(numbers(out, "aio-nr")[0]), int(numbers(out, "aio-nr")[1])
    if "after 399 loads" not in out:
        return never(out, "^load ") or "not 400 loads"
    return "" if after <= before + 128 else f"kernel slots from {before} to {after}"


def full_disks(out):
    """r07: one sentence with the file's name, exit 2, nothing half-written."""
    bad = never(out, r"rc=(?!0\b|2\b)\d+", r"\.part\b")
    for before, line in zip(out.splitlines(), out.splitlines()[1:], strict=False):
        if line.startswith("rc=2") and not re.search("tinyflash: .*mnt/", before):
            bad = bad or f"no file is named: {before[:90]}"
    return bad or ("" if codes(out) else "no codes")


def verified_meanwhile(out):
    """r09: a file changed while it is verified is not noted as verified."""
    lines = out.splitlines()
    begin = next(i for i, line in enumerate(lines) if "changed meanwhile: True" in line)
    if lines[begin + 1].startswith("{"):
        return f"read as verified: {lines[begin + 1][:70]}"
    return "" if codes(out)[-1] == 2 else "--check calls it whole"


def damaged_download(out):
    """r10: the damaged copy is noticed."""
    good, then = [line for line in out.splitlines() if line.startswith(("{", "tinyflash"))][:2]
    text = re.compile(r'"text": "(.*?)",')
    same = then.startswith("{") and text.search(good).group(1) == text.search(then).group(1)
    return "" if same or then.startswith("tinyflash") else f"garbage: {ascii(then)[:60]}"


def escapes(out):
    """r11, the half in a pipe: the text is untouched. The other half is in test_terminal.py."""
    text = out.partition("model output:")[2].partition("tensor name")[0]
    return "" if "033" in text else "the text was changed in a pipe"


def bombs(out):
    """r12: each is refused in one sentence, at once."""
    if "rc=124" in out:
        return "no end"
    minutes = re.search(r"real\s+(\d+)m([\d.]+)s", out)
    seconds = 60 * float(minutes.group(1)) + float(minutes.group(2))
    said = len(REFUSAL.findall(out))
    return f"{seconds} s" if seconds > 5 else "" if said == 3 else f"{said} refusals of 3"


def thresholds(out):
    """r13: a changed threshold is noticed by generate and by --check."""
    texts = [line for line in out.splitlines() if line.startswith("'")]
    bad = f"{len(texts)} texts, one was to come" if len(texts) != 1 else ""
    return bad or wrong_codes(out.replace("= ", "=").replace("store =", "rc="), 2)


def sentences(out, count):
    """r14: every one is refused with exit code 2 and one sentence.

    Only the slow normalizer may answer, whose prompt gives it nothing to do.
    """
    lines = re.findall(r"^rc=.*$", out, re.MULTILINE)
    bad = [line for line in lines if not line.startswith("rc=2 tinyflash: ")]
    if len(bad) == 1 and bad[0].startswith("rc=0") and bad[0] == lines[9]:
        return ""
    return bad[0][:110] if bad else "" if len(lines) == count else f"{len(lines)} of {count}"


def endless_templates(out):
    """r15: each ends with one sentence."""
    lines = re.findall(r"^rc=(\d+)", out, re.MULTILINE)
    return "" if lines == ["2", "2", "2"] else f"exit codes {lines}"


def threads(out):
    """r16: 8 right of 8 in each mode."""
    said = [ast.literal_eval(found) for found in re.findall(r"\{.*\}", out)]
    bad = [one for one in said if one != {"right": 8}]
    return str(bad[0])[:100] if bad else "" if len(said) == 3 else f"{len(said)} modes"


def odd_ids(out):
    """r17: each id one sentence; the cache's directories are the user's alone."""
    ids = out.partition("hub ids:")[2].partition("cache permissions")[0].strip().splitlines()
    bad = [line for line in ids if not line.startswith("tinyflash: ")]
    if bad or len(ids) != 11:
        return f"{len(ids)} sentences of 11 {bad[:1]}"
    return never(out, r"^d[rwx-]{3}(?!---)", "^-[rwx-]{3}(?!---)")


def read_only(out):
    """r18: one sentence each; an unwritable cache does not stop a store."""
    said = codes(out)
    return "" if said[:7] == [2, 2, 2, 2, 2, 0, 0] and said[7] in (0, 2) else f"{said}"


def qwen2_pieces(out):
    """c03: the ids of transformers, or a refusal."""
    return "" if "equals tinyflash: True" in out or refused(out) else "other pieces"


def evaluations(out):
    """c10: the text's tokens after the first, or these with the end token."""
    found = numbers(out, "tinyflash")[0]
    right = numbers(out, "the first") + numbers(out, "with the end token")
    near = any(abs(found - one) < 1e-3 * one for one in right)
    return "" if near else f"{found} is neither of {right}"


def stale(out):
    """c12: flash = dense and the same ends."""
    same = "flash = dense True" in out
    ends = re.search(r"ends (\[.*?\]) (\[.*?\])", out)
    return "" if same and ends.group(1) == ends.group(2) else out.strip()[-60:]


JUDGES = {
    "r00": interrupts,
    "r01": forks,
    "r02": replaced,
    "r03": cleared,
    "r04": lambda out: never(out, r"exit \d", r"^\w+ \w+ OTHER TEXT"),
    "r05": lambda out: wrong_codes(out, *5 * [(1, 2)]),
    "r06": leaks,
    "r07": full_disks,
    "r08": lambda out: wrong_codes(out, 0, 0, 0, 0),
    "r09": verified_meanwhile,
    "r10": damaged_download,
    "r11": escapes,
    "r12": bombs,
    "r13": thresholds,
    "r14": lambda out: sentences(out, 15),
    "r15": endless_templates,
    "r16": threads,
    "r17": odd_ids,
    "r18": read_only,
    "c01": close,
    "c02": close,
    "c03": qwen2_pieces,
    "c04": lambda out: same_lines(out.replace(" eos of", "\neos of"), "transformers", "tinyflash"),
    "c05": lambda out: "" if "equal: True" in out or refused(out) else "cut as GPT-2, silently",
    "c06": lambda out: "" if re.search(r"ends a text: \[.*\b2\b.*\]", out) else "2 ends nothing",
    "c07": lambda out: "" if refused(out) else same_lines(out, "transformers", "tinyflash"),
    "c08": lambda out: same_lines(out, "transformers", "tinyflash"),
    "c09": lambda out: close(out + " ", "from 4096 on", refusals=False),
    "c10": evaluations,
    "c12": stale,
    "c13": lambda out: wrong_codes(out, 0) or never(out, r"^\w*Error"),
    "c14": lambda out: wrong_codes(out, 2, 2, 0) or never(out, r"^\w*Error: "),
    "c15": lambda out: never(out, r"^\w*Error", "halted"),
    "c16": lambda out: wrong_codes(out, (0, 2)) or never(out, r"^\w*Error: "),
    "c17": lambda out: (
        "" if "tokens/s" in out or re.search("take .*(Q8_0|F16)", out) else out.strip()[-90:]
    ),
    "c18": lambda out: same_lines(out, "transformers", "tinyflash"),
    "c19": lambda out: "" if re.search("drafted tokens accepted|padd|rows", out) else out[:90],
    "c20": lambda out: "" if re.search("tokens 1 stop|special", out) else out.strip()[-60:],
    "c21": lambda out: "" if "tokens/s" in out else out.strip()[:90],
    "c22": lambda out: close(out, refusals=False),
    "c23": lambda out: close(out, refusals=False),
    "c24": lambda out: close(out, "largest difference / spread"),
    "c25": lambda out: wrong_codes(out, 0),
}
