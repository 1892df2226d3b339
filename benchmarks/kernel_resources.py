"""The resources of a compiled kernel, read from its cubin with the tools that Triton ships."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import triton
from kernel_cases import Case, stand_in
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


class Chip(NamedTuple):
    """A multiprocessor, after the tuning guides of compute capabilities 8.0, 9.0 and 10.0."""

    block_shared: int  # bytes that one block may have
    shared: int  # bytes of all blocks; each takes 1 KiB more than it asks for
    registers: int = 65536
    warps: int = 64
    blocks: int = 32


CHIPS = {
    80: Chip(163 << 10, 164 << 10),
    90: Chip(227 << 10, 228 << 10),
    100: Chip(227 << 10, 228 << 10),
}

# class of instructions -> SASS opcodes; the first that fits counts. U marks the uniform datapath.
CLASSES = {
    "spill": r"LDL|STL",
    "matrix": r"HGMMA|HMMA|IMMA|UTC\w*MMA",
    "uniform": r"U[A-Z]|R2UR|S2UR|VOTEU|LDCU|ELECT",
    "mufu": r"MUFU",
    "wide product": r"IMAD\.(WIDE|HI)",
    "float": r"F(MUL|ADD|FMA|MNMX|SETP|SEL|SET|CHK|SWZADD)|H(FMA|MUL|ADD|MNMX|SETP|SET)2",
    "convert": r"F2F|F2I|I2F|F2FP|I2FP|FRND",
    "integer": r"I(MAD|ADD|SETP|MNMX|ABS)|V?IADD|VI|LOP|PLOP3|SHF|SH[LR]|LEA|PRMT|SEL|BMSK|SGXT|FLO"
    r"|POPC|R2P|P2R|MOV|CS2R",
    "shared memory": r"LDS|STS|SHFL|REDUX|ATOMS|LDTM|STTM",
    "global memory": r"LDG|STG|RED|ATOM",
    "barrier": r"BAR|SYNCS|DEPBAR|LDGDEPBAR|WARPSYNC|WARPGROUP|MEMBAR|FENCE|NANOSLEEP|NOP",
}
_CLASS = re.compile("|".join(f"(?P<_{i}>{codes})" for i, codes in enumerate(CLASSES.values())))
_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][^;]*);", re.MULTILINE)
_BRANCH = re.compile(r"BRA\b.*(?<![\w.])0x([0-9a-f]+)")
_MATRIX_PTX = re.compile(r"\b(wgmma\.mma_async|tcgen05\.mma|mma\.sync)")


class Instruction(NamedTuple):
    """A line of SASS."""

    address: int
    text: str

    @property
    def opcode(self) -> str:
        """The opcode with its modifiers, such as IMAD.WIDE.U32."""
        return self.text.split()[0]


@dataclass(frozen=True)
class Resources:
    """Resources of a kernel: bytes of shared memory and stack, blocks on a multiprocessor."""

    registers: int
    stack: int
    spills: int  # instructions that move registers to and from local memory
    shared: int
    occupancy: int
    products: bool  # it multiplies tiles of 16-bit numbers
    matrix: str | None  # by which instruction of PTX
    instructions: int
    loop: dict[str, int]  # classes in the innermost loop, of one thread; {} without a loop


def instructions(sass: str) -> list[Instruction]:
    """The instructions of a disassembled function, in order."""
    return [Instruction(int(m[1], 16), m[2].strip()) for m in _LINE.finditer(sass)]


def innermost_loop(code: Sequence[Instruction]) -> list[Instruction]:
    """The innermost loop with the most matrix instructions, of equal ones the longest; [] without a
    loop. A loop is a backward branch and the instructions between its target and itself."""
    loops = []
    for i in code:
        branch = _BRANCH.match(i.text)
        if branch and (target := int(branch[1], 16)) < i.address:
            loops.append((target, i.address))
    inner = [a for a in loops if not any(b != a and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [[i for i in code if start <= i.address <= end] for start, end in inner]
    return max(bodies, key=lambda b: (count_classes(b)["matrix"], len(b)), default=[])


def count_classes(code: Sequence[Instruction]) -> Counter[str]:
    """How many instructions of each class of `CLASSES`, and of others ("other")."""
    names = list(CLASSES)
    found = (_CLASS.match(i.opcode) for i in code)
    return Counter(names[int(m.lastgroup[1:])] if m else "other" for m in found)


def occupancy(chip: Chip, registers: int, shared: int, warps: int) -> int:
    """How many blocks of so many warps one multiprocessor holds at a time."""
    of_a_warp = -(-registers * 32 // 256) * 256  # registers are handed out by 256
    warps_that_fit = chip.registers // of_a_warp // 4 * 4  # to each of four partitions
    return min(
        warps_that_fit // warps, chip.shared // (shared + 1024), chip.warps // warps, chip.blocks
    )


def compile_case(case: Case):
    """The triton.compiler.CompiledKernel, from Triton's cache if it has been compiled before."""
    stand_in(case.chip)
    source = ASTSource(case.function, case.signature, case.constexprs, case.attributes)
    return triton.compile(source, target=GPUTarget("cuda", case.chip, 32), options=case.options)


def resources(case: Case) -> Resources:
    """Compile a case and read its resources.

    Raises:
        RuntimeError: cuobjdump failed.
    """
    kernel = compile_case(case)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", "-sass", file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    usage = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout)
    if done.returncode or not usage:
        raise RuntimeError(f"cuobjdump of {case.kernel}: {done.stderr.strip()[-300:]}")
    registers, stack = map(int, usage.groups())
    code = instructions(done.stdout)
    shared = kernel.metadata.shared
    matrix = _MATRIX_PTX.search(kernel.asm["ptx"])
    return Resources(
        registers=registers,
        stack=stack,
        spills=count_classes(code)["spill"],
        shared=shared,
        occupancy=occupancy(CHIPS[case.chip], registers, shared, case.options["num_warps"]),
        products="tt.dot " in kernel.asm["ttir"] and case.dtype != "fp32",
        matrix=matrix[1] if matrix else None,
        instructions=len(code),
        loop=dict(count_classes(innermost_loop(code))),
    )


def stack_allowed(case: Case) -> int:
    """Bytes of stack that are allowed: 0 except for rows that models hardly have.

    A backward pass that holds 8,192 columns whole keeps more numbers than a multiprocessor has
    registers; the rest stays in the L1 cache. At 4,096 columns, and if a width is no multiple of 16
    so that each element has its own address, ptxas puts up to four numbers there.
    """
    names, block = case.function.arg_names, case.blocks.get("BLOCK", 0)
    if block == 8192:
        return 256
    unaligned = "width" in names and not case.attributes[(names.index("width"),)]
    return 16 if block == 4096 or unaligned else 0


_UNUSED_SLOT = 8  # bytes


def problems(case: Case, found: Resources) -> list[str]:
    """The limits that it breaks: spills, shared memory, missing matrix instructions."""
    broken = []
    # one slot that no instruction reads or writes costs nothing: LLVM leaves such
    unused = 0 if found.spills else _UNUSED_SLOT
    if found.stack > stack_allowed(case) + unused or (found.spills and not found.stack):
        broken.append(f"{found.spills} spills, {found.stack} bytes of stack")
    limit = CHIPS[case.chip].block_shared
    if found.shared > limit:
        broken.append(f"{found.shared} bytes of shared memory, of {limit}")
    elif not found.occupancy:
        broken.append(f"{found.registers} registers: no block fits")
    # mma.sync, which every chip has, gives half of sm_90's rate; small tiles of sm_100 take it
    fast = found.matrix == "wgmma.mma_async" if case.chip == 90 else found.matrix
    if found.products and not fast:
        broken.append(f"products by {found.matrix or 'no matrix instruction'}")
    return broken
