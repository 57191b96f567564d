"""Few queries against many keys, a block of R queries by K keys at a time: S = Q Kᵀ, and O ← O + P V.

So few queries are no work for BLAS, which would copy the keys to multiply them: memory is the limit, and
everything else has to be done while it delivers.

    dots      R · K sums in registers, as vectors whose lanes are added up only at the end of a row:
              R + K reads for R · K multiplications of whole vectors
    spread    R · K weights in registers, each in all lanes of a vector, along the rows of K values:
              2 R + K reads and writes for as many

The lanes are added up for all sums at once. Two vectors make one of half the sums of each,

    a₀ a₁ a₂ a₃   b₀ b₁ b₂ b₃   →   a₀+a₁  a₂+a₃  b₀+b₁  b₂+b₃

so that after log₂ W rounds lane i of what is left is the sum of the i-th vector.

A number of a row is stored as itself ("float"), as a byte of code ("byte"), or as half of one ("nibble"):
then a row of bytes holds two neighbours, the first in the lower halves. Codes become floats in registers.
"""

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from .matmul import BYTES, I32, I64, _Vectors

R, K = 4, 4 if BYTES == 64 else 2  # 16 sums of the 32 registers there are with AVX-512, or 8 of 16
AHEAD = 6144
"""Bytes from what is read to what is asked for: less comes too late, more is gone when it is needed."""
LINE = 64
SUMS = {"contract", "reassoc", "nsz"}
I8 = ir.IntType(8)
BYTE = I8.as_pointer()


class _Rows:
    """The numbers `at` … `at` + W of K neighbouring rows, each a vector of floats."""

    def __init__(self, builder, on, kind, first, stride, ahead):
        self.builder, self.on, self.kind = builder, on, kind
        self.stored = K // 2 if kind == "nibble" else K
        self.starts = [_row(builder, first, stride, n) for n in range(self.stored)]
        self.later = builder.gep(first, [ahead])

    def __call__(self, at):
        size = self.on.bits // 8 if self.kind == "float" else 1
        places = [self.builder.gep(x, [self.builder.mul(at, I64(size))]) for x in self.starts]
        self._fetch(self.builder.mul(at, I64(size * self.stored)), size * self.stored * self.on.W)
        if self.kind == "float":
            return [self.on.load(x) for x in places]
        codes = [self._codes(x) for x in places]
        if self.kind == "nibble":
            lower, four = (ir.Constant(codes[0].type, [n] * self.on.W) for n in (15, 4))
            codes = [x for c in codes for x in (self.builder.and_(c, lower), self.builder.lshr(c, four))]
        return [self.builder.sitofp(c, self.on.vector) for c in codes]

    def _codes(self, place):
        """W bytes, each as an integer of 32 bits."""
        packed = ir.VectorType(I8, self.on.W)
        found = self.builder.load(self.builder.bitcast(place, packed.as_pointer()), align=1)
        return self.builder.zext(found, ir.VectorType(I32, self.on.W))

    def _fetch(self, at, count):
        """Tell the processor that these bytes, counted from `later` on, will be read.

        One line after another, as they lie, and not as they are read: then it guesses the next by itself.
        """
        kind = ir.FunctionType(ir.VoidType(), [BYTE, I32, I32, I32])
        function = cgutils.get_or_insert_function(self.builder.module, kind, "llvm.prefetch.p0")
        for n in range(0, count, LINE):
            place = self.builder.gep(self.later, [self.builder.add(at, I64(n))])
            self.builder.call(function, [place, I32(0), I32(3), I32(1)])


def _row(builder, first, stride, n):
    """The address of row n."""
    return builder.gep(first, [builder.mul(stride, I64(n))])


def _along(builder, count, step, body, start):
    """x ← body(at, x) from x = start, for `at` in range(0, count, step); count is at least step."""
    before = builder.block
    loop, after = builder.append_basic_block("loop"), builder.append_basic_block("after")
    builder.branch(loop)
    builder.position_at_end(loop)
    at, carried = builder.phi(I64), [builder.phi(x.type) for x in start]
    found, then = body(at, carried), builder.add(at, I64(step))
    for phi, first, last in zip([at, *carried], [I64(0), *start], [then, *found], strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(last, loop)
    builder.cbranch(builder.icmp_signed("<", then, count), loop, after)
    builder.position_at_end(after)
    return found


def _added_up(builder, on, sums):
    """The sums of the lanes of many vectors, as lanes of fewer; see the picture above."""
    even, odd = (ir.Constant(ir.VectorType(I32, on.W), list(range(n, 2 * on.W, 2))) for n in (0, 1))
    for _ in range(on.W.bit_length() - 1):
        sums = [builder.fadd(builder.shuffle_vector(a, b, even), builder.shuffle_vector(a, b, odd))
                for a, b in zip(sums[::2], sums[1::2], strict=True)]
    return sums


def _dots(kind):
    """S[r, c] ← Σ_d q[r, d] k[c, d] for R rows and K keys; D is a multiple of the lanes of a vector."""
    @intrinsic
    def dots(typingctx, q, q_stride, k, k_stride, s, s_stride, D, ahead, zero):
        def generate(context, builder, signature, args):
            q, q_stride, k, k_stride, s, s_stride, D, ahead, zero = args
            on = _Vectors(builder, zero.type)
            rows = [builder.bitcast(_row(builder, q, q_stride, r), zero.type.as_pointer()) for r in range(R)]
            keys = _Rows(builder, on, kind, k, k_stride, ahead)

            def body(at, sums):
                x, y = [on.load(builder.gep(row, [at])) for row in rows], keys(at)
                return [on.add_product(x[r], y[c], sums[r * K + c]) for r in range(R) for c in range(K)]

            sums = _added_up(builder, on, _along(builder, D, on.W, body, [on.zero] * (R * K)))
            for r in range(R):
                n, first = divmod(r * K, on.W)
                lanes = ir.Constant(ir.VectorType(I32, K), list(range(first, first + K)))
                part = builder.shuffle_vector(sums[n], sums[n], lanes)
                place = builder.bitcast(_row(builder, s, s_stride, r), part.type.as_pointer())
                builder.store(part, place, align=on.bits // 8)
            return context.get_dummy_value()

        at, whole = types.voidptr, types.intp
        return types.void(at, whole, at, whole, at, whole, whole, whole, zero), generate

    return dots


def _spread(kind):
    """o[r, d] ← o[r, d] + Σ_c p[r, c] v[c, d] for R rows and K values; D as in `_dots`."""
    @intrinsic
    def spread(typingctx, p, p_stride, v, v_stride, o, o_stride, D, ahead, zero):
        def generate(context, builder, signature, args):
            p, p_stride, v, v_stride, o, o_stride, D, ahead, zero = args
            on, number = _Vectors(builder, zero.type), zero.type.as_pointer()
            rows = [builder.bitcast(_row(builder, o, o_stride, r), number) for r in range(R)]
            values = _Rows(builder, on, kind, v, v_stride, ahead)
            starts = [builder.bitcast(_row(builder, p, p_stride, r), number) for r in range(R)]
            weights = [[on.spread(builder.load(builder.gep(x, [I64(c)]))) for c in range(K)] for x in starts]

            def body(at, _):
                y = values(at)
                for row, weight in zip(rows, weights, strict=True):
                    place = builder.gep(row, [at])
                    total = on.load(place)
                    for c in range(K):
                        total = on.add_product(weight[c], y[c], total)
                    on.store(total, place)
                return []

            _along(builder, D, on.W, body, [])
            return context.get_dummy_value()

        at, whole = types.voidptr, types.intp
        return types.void(at, whole, at, whole, at, whole, whole, whole, zero), generate

    return spread


dots, byte_dots, nibble_dots = _dots("float"), _dots("byte"), _dots("nibble")
spread, byte_spread, nibble_spread = _spread("float"), _spread("byte"), _spread("nibble")


@njit(error_model="numpy", fastmath=SUMS)
def _add_scores(q, k, s):
    """S ← S + Q Kᵀ, one sum after another: what is left beside the blocks."""
    for j in range(len(k)):
        for r in range(len(q)):
            for d in range(q.shape[1]):
                s[r, j] += q[r, d] * k[j, d]


@njit(error_model="numpy", fastmath=SUMS)
def _add_values(p, v, o):
    """O ← O + P V, likewise."""
    for j in range(len(v)):
        for r in range(len(o)):
            for d in range(o.shape[1]):
                o[r, d] += p[r, j] * v[j, d]


@njit(error_model="numpy")
def score(q, k, s, ahead):
    """S ← Q Kᵀ for a number of queries that R divides, while what lies `ahead` bytes further is fetched."""
    (n, D), zero = k.shape, q.dtype.type(0)
    many, wide = n - n % K, D - D % (BYTES // q.itemsize)
    if wide:
        for j in range(0, many, K):
            for r in range(0, len(q), R):
                dots(q[r:].ctypes, q.strides[0], k[j:].ctypes, k.strides[0], s[r:, j:].ctypes, s.strides[0],
                     wide, ahead, zero)
    else:
        s[:, :many] = zero
    s[:, many:] = zero
    if wide < D:
        _add_scores(q[:, wide:], k[:many, wide:], s)
    _add_scores(q, k[many:], s[:, many:])


@njit(error_model="numpy")
def gather(p, v, o, ahead):
    """O ← O + P V, likewise."""
    (n, D), zero = v.shape, o.dtype.type(0)
    many, wide = n - n % K, D - D % (BYTES // o.itemsize)
    if wide:
        for j in range(0, many, K):
            for r in range(0, len(o), R):
                spread(p[r:, j:].ctypes, p.strides[0], v[j:].ctypes, v.strides[0], o[r:].ctypes, o.strides[0],
                       wide, ahead, zero)
    if wide < D:
        _add_values(p, v[:many, wide:], o[:, wide:])
    _add_values(p[:, many:], v[many:], o)


@njit(error_model="numpy")
def score_codes(q, codes, each, s):
    """S ← Q Cᵀ for keys whose number K divides, `each` of them a byte, and features that fill vectors."""
    zero, D = q.dtype.type(0), codes.shape[1]
    for j in range(0, each * len(codes), K):
        row = codes[j // each :].ctypes
        for r in range(0, len(q), R):
            x, y = q[r:].ctypes, s[r:, j:].ctypes
            if each == 2:
                nibble_dots(x, q.strides[0], row, D, y, s.strides[0], D, AHEAD, zero)
            else:
                byte_dots(x, q.strides[0], row, D, y, s.strides[0], D, AHEAD, zero)


@njit(error_model="numpy")
def gather_codes(p, codes, each, o):
    """O ← O + P C, likewise."""
    zero, D = o.dtype.type(0), codes.shape[1]
    for j in range(0, each * len(codes), K):
        row = codes[j // each :].ctypes
        for r in range(0, len(o), R):
            x, y = p[r:, j:].ctypes, o[r:].ctypes
            if each == 2:
                nibble_spread(x, p.strides[0], row, D, y, o.strides[0], D, AHEAD, zero)
            else:
                byte_spread(x, p.strides[0], row, D, y, o.strides[0], D, AHEAD, zero)
