"""What the compiler makes of the Triton kernels, for GPUs that need not be here.

`python -m megacpt_kernels.compile_report` compiles every variant for each architecture and prints a table (`--json`: a
list of objects) of registers, shared memory, local memory (what the registers spill to), the widest access to global
memory, and the warps that fit on a multiprocessor. Triton's wheel brings the assembler; no driver is asked.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from megacpt_kernels.replay_cross_entropy import kernel

ARCHITECTURES = (80, 90, 100)
REGISTERS_PER_MULTIPROCESSOR = 65536
WARPS_PER_MULTIPROCESSOR = 64
PROGRAMS_PER_MULTIPROCESSOR = 32

LOGITS = ("logits", "out", "written")
TYPES = {
    "labels": "*i64",
    **dict.fromkeys(("weights", "factors", "stats", "anchors", "log_sums"), "*fp32"),
    **dict.fromkeys(("nll_out", "loss_out", "anchor_out", "log_sum_out", "scale_out"), "*fp32"),
    **dict.fromkeys(("scale", "cap", "z_loss", "smoothing"), "fp32"),
}
MULTIPLES_OF_16 = ("row_stride", "out_stride", "width", "num_columns")


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel as one call launches it."""

    kernel: str
    dtype: str
    """Of the logits."""
    flags: tuple[str, ...]
    """The switches that are on."""
    is_aligned: bool
    """Whether the number of columns is a multiple of 16."""

    def source(self) -> ASTSource:
        """What Triton compiles."""
        function: JITFunction = getattr(kernel, f"_{self.kernel}_kernel")
        names = function.arg_names
        constants: dict[str, object] = {
            name: name in self.flags for name in names if name.startswith(("IS_", "WRITES"))
        }
        constants["BLOCK"] = kernel.COMBINE_BLOCK_COLUMNS if self.kernel == "combine" else kernel.BLOCK_COLUMNS
        types = TYPES | dict.fromkeys(LOGITS, f"*{self.dtype}") | dict.fromkeys(constants, "constexpr")
        signature = {name: types.get(name, "i32") for name in names}
        multiples = MULTIPLES_OF_16 if self.is_aligned else MULTIPLES_OF_16[:3]
        attributes = {
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if signature[name].startswith("*") or name in multiples
        }
        return ASTSource(function, signature, constants, attributes)

    @property
    def num_warps(self) -> int:
        """Warps of a program."""
        return 1 if self.kernel == "combine" else kernel.NUM_WARPS

    @property
    def max_registers(self) -> int | None:
        """Of a thread; None: as many as the assembler likes."""
        return kernel.SCAN_MAX_REGISTERS if self.kernel == "scan" and "WRITES" not in self.flags else None


@dataclass(frozen=True, slots=True)
class Compiled:
    """What one variant takes of a multiprocessor."""

    variant: Variant
    architecture: int
    registers: int
    """Of a thread."""
    shared_bytes: int
    local_bytes: int
    """Of a thread: stack and spilled registers."""
    widest_load_bytes: int
    widest_store_bytes: int

    @property
    def resident_warps(self) -> int:
        """Warps on a multiprocessor at a time, as far as registers go; they are given to a warp 256 at a time."""
        warp_registers = -(-self.registers * 32 // 256) * 256
        programs = REGISTERS_PER_MULTIPROCESSOR // (warp_registers * self.variant.num_warps)
        return min(min(programs, PROGRAMS_PER_MULTIPROCESSOR) * self.variant.num_warps, WARPS_PER_MULTIPROCESSOR)


def variants() -> Iterator[Variant]:
    """Every variant that the ops launch with aligned columns, and the plain ones with any number of columns."""
    for capped in ((), ("IS_CAPPED",)):
        for dtype in ("bf16", "fp16", "fp32"):
            yield Variant("scan", dtype, capped, is_aligned=True)
            yield Variant("scan", dtype, (*capped, "IS_SMOOTHED"), is_aligned=True)
            yield Variant("differentiate", dtype, capped, is_aligned=True)
        for dtype in ("bf16", "fp32"):
            yield Variant("scan", dtype, (*capped, "WRITES"), is_aligned=True)
            yield Variant("combine", dtype, (*capped, "WRITES"), is_aligned=True)
    yield Variant("combine", "fp32", (), is_aligned=True)
    yield Variant("combine", "fp32", ("IS_SMOOTHED",), is_aligned=True)
    yield Variant("scan", "bf16", ("WRITES",), is_aligned=False)
    yield Variant("differentiate", "bf16", (), is_aligned=False)


def compile_variant(variant: Variant, architecture: int) -> Compiled:
    """Compile one variant for one compute capability, 90 for 9.0."""
    options = {"num_warps": variant.num_warps, "maxnreg": variant.max_registers, **kernel.COMPILER_OPTIONS}
    binary = triton.compile(variant.source(), target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    counts = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage)}
    return Compiled(
        variant,
        architecture,
        registers=counts["REG"],
        shared_bytes=binary.metadata.shared,
        local_bytes=counts["STACK"] + counts["LOCAL"],
        widest_load_bytes=_widest_bytes(binary.asm["ptx"], "ld"),
        widest_store_bytes=_widest_bytes(binary.asm["ptx"], "st"),
    )


def _widest_bytes(ptx: str, access: str) -> int:
    accesses = re.findall(rf"\b{access}\.global(?:\.\w+)*?(?:\.v(\d))?\.[a-z](\d+)\b", ptx)
    return max(int(count or 1) * int(bits) // 8 for count, bits in accesses)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description="Compile the kernels for GPUs that need not be here.")
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities")
    parser.add_argument("--json", action="store_true", help="print a list of objects")
    options = parser.parse_args(arguments)
    results = [compile_variant(variant, number) for number in options.architectures for variant in variants()]
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=1))
        return
    print(f"Triton {triton.__version__}")
    print("| kernel | logits | switches | columns | sm | registers | local B | shared B | load B | store B | warps |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for result in results:
        variant = result.variant
        cells = (
            variant.kernel,
            variant.dtype,
            " ".join(variant.flags).replace("IS_", "").lower() or "-",
            "16n" if variant.is_aligned else "any",
            result.architecture,
            result.registers,
            result.local_bytes,
            result.shared_bytes,
            result.widest_load_bytes,
            result.widest_store_bytes,
            result.resident_warps,
        )
        print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
