"""Matrix products inside compiled loops: nothing is copied, and sums stay in registers.

C ← α A B + β C is computed block by block. While a loop goes along a row of A and down B, R rows by V vectors
of C are sums in registers; one number of A at a time meets a row of B:

              V vectors of a row of B, read where they lie
            ┌───────┬───────┐
       a₀ → │ + + + │ + + + │      R · V multiplications of whole vectors
       a₁ → │ + + + │ + + + │      for R + V reads
       ⋮    │       │       │
            └───────┴───────┘

A may lie by rows or by columns, since its numbers come one by one. What is left below is computed by single
rows, what is left to the right by single vectors of which only the first so many lanes count. A library does
the same, after it has brought A and B into an order of its own: for a large product that pays, for a tile of
attention it takes a third of the time.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvm.get_host_cpu_features()
BYTES = 64 if _FEATURES.get("avx512f") else 32 if _FEATURES.get("avx") else 16
"""Of a vector register."""
R, V = (8, 2) if BYTES == 64 else (4, 2)  # there are 32 registers of 64 bytes, or 16 of 32
I64, I32 = ir.IntType(64), ir.IntType(32)


class _Vectors:
    """What is done with vectors of W numbers of one kind; of a masked one, with the first `lanes` of them."""

    def __init__(self, builder, number, lanes=None):
        self.builder, self.number = builder, number
        self.bits = 32 if number == ir.FloatType() else 64
        self.W = BYTES * 8 // self.bits
        self.vector = ir.VectorType(number, self.W)
        self.zero = ir.Constant(self.vector, [0.0] * self.W)
        self.mask = None
        if lanes is not None:
            every = ir.VectorType(I64, self.W)
            self.mask = builder.icmp_signed("<", ir.Constant(every, list(range(self.W))), self.spread(lanes))

    def spread(self, x):
        """A number in all lanes."""
        nothing = ir.Constant(ir.VectorType(x.type, self.W), ir.Undefined)
        everywhere = ir.Constant(ir.VectorType(I32, self.W), [0] * self.W)
        first = self.builder.insert_element(nothing, x, I32(0))
        return self.builder.shuffle_vector(first, nothing, everywhere)

    def add_product(self, x, y, z):
        """x y + z, in one instruction where there is one."""
        rounded_once = ("contract",)
        return self.builder.fadd(self.builder.fmul(x, y, rounded_once), z, rounded_once)

    def _masked(self, kind, result, *operands):
        name = f"llvm.masked.{kind}.v{self.W}f{self.bits}.p0"
        form = ir.FunctionType(result, [x.type for x in operands])
        function = cgutils.get_or_insert_function(self.builder.module, form, name)
        return self.builder.call(function, operands)

    def load(self, at):
        """The vector at an address."""
        at = self.builder.bitcast(at, self.vector.as_pointer())
        if self.mask is not None:
            return self._masked("load", self.vector, at, I32(self.bits // 8), self.mask, self.zero)
        return self.builder.load(at, align=self.bits // 8)

    def store(self, x, at):
        """x to an address."""
        at = self.builder.bitcast(at, self.vector.as_pointer())
        if self.mask is not None:
            return self._masked("store", ir.VoidType(), x, at, I32(self.bits // 8), self.mask)
        return self.builder.store(x, at, align=self.bits // 8)


def _block(rows, wide, masked):
    """A function that computes `rows` × `wide` vectors of C; see the picture above.

    Distances are in numbers: `down` and `along` from a row and a column of A to the next, `b_row` and `c_row`
    from a row of B and C to the next.
    """
    @intrinsic
    def block(typingctx, a, down, along, b, b_row, c, c_row, depth, alpha, beta, lanes):
        def generate(context, builder, signature, args):
            a, down, along, b, b_row, c, c_row, depth, alpha, beta, lanes = args
            number = alpha.type
            a, b, c = (builder.bitcast(x, number.as_pointer()) for x in (a, b, c))
            on = _Vectors(builder, number, lanes if masked else None)
            every = [(r, w) for r in range(rows) for w in range(wide)]

            before, loop = builder.block, builder.append_basic_block("loop")
            after = builder.append_basic_block("after")
            builder.branch(loop)
            builder.position_at_end(loop)
            step, at_a, at_b = builder.phi(I64), builder.phi(a.type), builder.phi(b.type)
            sums = {n: builder.phi(on.vector) for n in every}
            row = [on.load(builder.gep(at_b, [I64(w * on.W)])) for w in range(wide)]
            column = [on.spread(builder.load(builder.gep(at_a, [builder.mul(down, I64(r))])))
                      for r in range(rows)]
            found = {(r, w): on.add_product(column[r], row[w], sums[r, w]) for r, w in every}
            ends = builder.add(step, I64(1)), builder.gep(at_a, [along]), builder.gep(at_b, [b_row])
            starts = I64(0), a, b
            for phi, first, then in [*zip((step, at_a, at_b), starts, ends, strict=True),
                                     *((sums[n], on.zero, found[n]) for n in every)]:
                phi.add_incoming(first, before)
                phi.add_incoming(then, loop)
            builder.cbranch(builder.icmp_signed("<", ends[0], depth), loop, after)

            builder.position_at_end(after)
            places = {(r, w): builder.gep(c, [builder.add(builder.mul(c_row, I64(r)), I64(w * on.W))])
                      for r, w in every}
            scaled = {n: builder.fmul(on.spread(alpha), found[n]) for n in every}
            with builder.if_else(builder.fcmp_unordered("!=", beta, number(0.0))) as (add, put):
                with add:
                    for n in every:
                        on.store(on.add_product(on.spread(beta), on.load(places[n]), scaled[n]), places[n])
                with put:
                    for n in every:
                        on.store(scaled[n], places[n])
            return context.get_dummy_value()

        whole = types.intp
        a_kinds, others = (types.voidptr, whole, whole), (types.voidptr, whole)
        return types.void(*a_kinds, *others, *others, whole, alpha, alpha, whole), generate

    return block


def _strip(many, single):
    """A function that computes C in strips of R rows, and what is left row by row."""
    @njit(error_model="numpy")
    def strip(a, b, c, alpha, beta, lanes):
        size, m, depth = c.itemsize, len(c), len(b)
        down, along = a.strides[0] // size, a.strides[1] // size
        b_row, c_row = b.strides[0] // size, c.strides[0] // size
        for i in range(0, m - m % R, R):
            many(a[i:].ctypes, down, along, b.ctypes, b_row, c[i:].ctypes, c_row, depth, alpha, beta, lanes)
        for i in range(m - m % R, m):
            single(a[i:].ctypes, down, along, b.ctypes, b_row, c[i:].ctypes, c_row, depth, alpha, beta, lanes)

    return strip


_whole = _strip(_block(R, V, False), _block(1, V, False))
_edge = _strip(_block(R, 1, True), _block(1, 1, True))


@njit(error_model="numpy")
def product(a, b, c, alpha, beta):
    """C ← α A B + β C, the factors of the dtype of C; with β = 0, C may hold anything.

    The numbers of a row of `b` and of `c` lie side by side; those of `a` lie anyhow. Nothing is empty.
    """
    n, W = c.shape[1], BYTES // c.itemsize
    for j in range(0, n - n % (V * W), V * W):
        _whole(a, b[:, j:], c[:, j:], alpha, beta, W)
    for j in range(n - n % (V * W), n, W):
        _edge(a, b[:, j:], c[:, j:], alpha, beta, n - j)
