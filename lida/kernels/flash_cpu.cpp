// softmax(q k^T scale) v and its gradients in bf16; flash_cpu.py compiles and calls it. Products run on the matrix tiles of
// Intel's CPUs (AMX), or on vectors of 512 bits (AVX512-BF16), which AMD's CPUs have from Zen 4 on.
//
// A product multiplies A by B, whose rows lie in pairs, onto C in float: a tile instruction 16 x 32 by 32 x 16 numbers, a
// vector instruction a pair of A by 2 x 16 of B. All is computed transposed, keys down and queries across: a softmax's sums then
// stand in the lanes of vectors, and what one product gives is what the next one takes. Scores live a block at a time, in the
// cache (Dao 2023, FlashAttention-2).

#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

using bf16 = uint16_t;
constexpr long TILE = 16, SIDE = 32;  // a tile's rows; the side of what product() makes at a time, two by two tiles
constexpr long BLOCK = 256;           // the keys, and on the way back queries, whose scores are kept between two products
constexpr float LOG2_E = 1.44269504f;

template <class T> struct Buffer {  // on whole cache lines, as tiles are read by lines
  T* const data;
  explicit Buffer(long size) : data(static_cast<T*>(std::aligned_alloc(64, (size * sizeof(T) + 63) / 64 * 64))) {}
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data); }
  T& operator[](long i) const { return data[i]; }
};

struct Head {  // (tokens, d), columns side by side
  bf16* data;
  long token;
  bf16* operator[](long i) const { return data + i * token; }
};

struct Heads {  // (batch, heads, tokens, d)
  bf16* data;
  long batch, head, token;
  Head at(long i, long heads) const { return {data + i / heads * batch + i % heads * head, token}; }
};

// --- Products

struct Left { const bf16* data; long row, step; };         // to its next row, and its next 32 columns
struct Right { const bf16* data; long row, right, step; };  // to its next pair of rows, its next 16 columns, its next 32 rows
struct Size { long rows, columns, sum; };                   // of C, and how many numbers each of its numbers sums

#ifdef __AMX_BF16__
constexpr long STEP = SIDE;  // features are filled up to a multiple of it: tiles are taken two by two

// Ask Linux for the tile registers, once a process (arch_prctl, ARCH_REQ_XCOMP_PERM): 0 where it gives them
extern "C" long ready() { return syscall(SYS_arch_prctl, 0x1023, 18); }

// Before tiles are loaded: the compiler does not know what the instruction reads, and would write it later, or not at all
static inline void write_now(const void* data) { asm volatile("" ::"r"(data) : "memory"); }

struct Tiles {  // a thread's tile registers: eight of 16 rows of 64 bytes
  Tiles() {
    struct { uint8_t palette = 1, rest[15] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } config;
    for (int t = 0; t < 8; t++) config.bytes[t] = 64, config.rows[t] = TILE;
    write_now(&config);
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

// C = A B, or that added to C: always 32 x 32 numbers, and sums of whole steps, for the rest is zeros
static inline void product(float* c, long row, Left a, Right b, Size size, bool add) {
  float* below = c + TILE * row;
  write_now(c);
  if (add) {
    _tile_loadd(0, c, 4 * row);
    _tile_loadd(1, c + TILE, 4 * row);
    _tile_loadd(2, below, 4 * row);
    _tile_loadd(3, below + TILE, 4 * row);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (long s = 0; s < size.sum; s += 32, a.data += a.step, b.data += b.step) {
    _tile_loadd(4, a.data, 2 * a.row);
    _tile_loadd(6, b.data, 2 * b.row);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b.data + b.right, 2 * b.row);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a.data + TILE * a.row, 2 * a.row);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, 4 * row);
  _tile_stored(1, c + TILE, 4 * row);
  _tile_stored(2, below, 4 * row);
  _tile_stored(3, below + TILE, 4 * row);
}
#else
constexpr long STEP = TILE;  // features are filled up to a multiple of it: whole vectors

extern "C" long ready() { return 0; }  // vectors need no permission

struct Tiles {};  // there are none

static inline __m512bh one_pair(const bf16* data) {
  int32_t pair;
  std::memcpy(&pair, data, 4);
  return (__m512bh)_mm512_set1_epi32(pair);
}

// C = A B, or that added to C: 16 of its rows in as many registers at a time
static inline void product(float* c, long row, Left a, Right b, Size size, bool add) {
  for (long i = 0; i < size.rows; i += TILE)
    for (long j = 0; j < size.columns; j += TILE) {
      __m512 sums[TILE];
      for (long r = 0; r < TILE; r++) sums[r] = add ? _mm512_loadu_ps(c + (i + r) * row + j) : _mm512_setzero_ps();
      for (long s = 0; s < size.sum; s += 32) {
        const bf16 *left = a.data + i * a.row + s / 32 * a.step, *right = b.data + j / TILE * b.right + s / 32 * b.step;
        for (long k = 0; k < std::min(32L, size.sum - s); k += 2, left += 2, right += b.row) {
          const __m512bh two_rows = (__m512bh)_mm512_loadu_si512(right);
#pragma GCC unroll 16
          for (long r = 0; r < TILE; r++) sums[r] = _mm512_dpbf16_ps(sums[r], one_pair(left + r * a.row), two_rows);
        }
      }
      for (long r = 0; r < TILE; r++) _mm512_storeu_ps(c + (i + r) * row + j, sums[r]);
    }
}
#endif

// --- The layouts that products take, of one head's tokens (n, d), with zeros up to (N, D), multiples of SIDE and of STEP

static inline long whole(long x, long unit = SIDE) { return (x + unit - 1) / unit * unit; }

static inline long part_of(long D, long c) { return std::min(SIDE, D - c); }  // the features from c on that one product takes

struct Packed {
  const long n, d, D;
  Buffer<bf16> data;
  Packed(long n, long d) : n(n), d(d), D(whole(d, STEP)), data(whole(n) * D) { std::fill_n(data.data, whole(n) * D, 0); }
  template <class At> void fill(Head x, At at) {
    for (long i = 0; i < n; i++) {
      const bf16* row = x[i];
      for (long c = 0; c < d; c++) data[at(i, c)] = row[c];
    }
  }
};

struct Rows : Packed {  // left, to sum over features: (N, D)
  using Packed::Packed;
  void pack(Head x) {
    fill(x, [this](long i, long c) { return i * D + c; });
  }
  Left operator()(long i) const { return {&data[i * D], D, 32}; }
};

struct Columns : Packed {  // left, transposed, to sum over tokens: (N / 32, D, 32)
  using Packed::Packed;
  void pack(Head x) {
    fill(x, [this](long i, long c) { return i / 32 * 32 * D + i % 32 + c * 32; });
  }
  Left operator()(long c, long i) const { return {&data[i * D + c * 32], 32, 32 * D}; }
};

struct Features : Packed {  // right, transposed, to sum over features: (N / 16, D / 2, 16, 2)
  using Packed::Packed;
  void pack(Head x) {
    fill(x, [this](long i, long c) { return i / 16 * 16 * D + i % 16 * 2 + c / 2 * 32 + c % 2; });
  }
  Right operator()(long i) const { return {&data[i * D], 32, 16 * D, 512}; }
};

struct Tokens : Packed {  // right, to sum over tokens: (N / 2, D, 2)
  using Packed::Packed;
  void pack(Head x) {
    fill(x, [this](long i, long c) { return i / 2 * 2 * D + i % 2 + c * 2; });
  }
  Right operator()(long i, long c) const { return {&data[i * D + 2 * c], 2 * D, 32, 32 * D}; }
};

// --- Vectors of 16

static inline __m512 load(const float* x) { return _mm512_loadu_ps(x); }

static inline __m512 all(float x) { return _mm512_set1_ps(x); }

// Two rows of 16, rounded to bf16: one after the other, and as the pairs of a right-hand side
static inline __m512i rounded(__m512 even, __m512 odd) { return (__m512i)_mm512_cvtne2ps_pbh(odd, even); }

static inline __m512i paired(__m512i rows) {
  alignas(64) static const uint16_t order[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return _mm512_permutexvar_epi16(_mm512_load_si512(order), rows);
}

static inline void store(bf16* even, bf16* odd, __m512i rows) {
  _mm256_storeu_si256((__m256i*)even, _mm512_castsi512_si256(rows));
  _mm256_storeu_si256((__m256i*)odd, _mm512_extracti64x4_epi64(rows, 1));
}

// 2^y = 2^n 2^f with |f| <= 1/2, the latter by a cubic: off by at most 8e-5 of it, where bf16 rounds by up to 4e-3
static inline __m512 power_of_2(__m512 y) {
  const __m512 n = _mm512_roundscale_ps(y, 0), f = _mm512_sub_ps(y, n);
  __m512 sum = all(0.05517165f);
  for (float c : {0.24261117f, 0.69326099f, 0.99992807f}) sum = _mm512_fmadd_ps(sum, f, all(c));
  return _mm512_scalef_ps(sum, n);
}

static inline float number(bf16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// scale times d numbers, to bf16
static void write_row(bf16* to, const float* from, long d, float scale) {
  for (long c = 0; c < d; c += TILE) {
    const __mmask16 inside = d - c < TILE ? (1u << (d - c)) - 1 : 0xffff;
    _mm256_mask_storeu_epi16(to + c, inside, (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(load(from + c), all(scale))));
  }
}

// The same of up to 32 tokens that lie transposed (D, 32), each with its scale
static void write_columns(Head to, long first, long last, const float* from, float* row, long d, const float* scales) {
  for (long i = 0; i < std::min(SIDE, last - first); i++) {
    for (long c = 0; c < d; c++) row[c] = from[c * SIDE + i];
    write_row(to[first + i], row, d, scales[i]);
  }
}

// --- Of a block's scores, keys down and 32 queries across

// Of each query, 2^(scale s - most) as pairs in p, and their sum. `most` is the greatest scaled score so far; what was summed
// by an older one, o (D, 32) included, is scaled to it (Dao 2023, section 3.1.1)
static inline void exponentials(const float* s, bf16* p, float* o, float* most, float* sum, long keys, long D, float scale) {
  for (long c = 0; c < SIDE; c += TILE) {
    __m512 tops[4], total = _mm512_setzero_ps();  // four at a time, for each waits on the one before
    for (__m512& top : tops) top = load(s + c);
    for (long j = 1; j < keys; j++) tops[j % 4] = _mm512_max_ps(tops[j % 4], load(s + j * SIDE + c));
    const __m512 highest = _mm512_max_ps(_mm512_max_ps(tops[0], tops[1]), _mm512_max_ps(tops[2], tops[3]));
    const __m512 top = _mm512_max_ps(_mm512_mul_ps(highest, all(scale)), load(most + c));
    const auto exponential = [&](long j) {
      return j < keys ? power_of_2(_mm512_fmsub_ps(load(s + j * SIDE + c), all(scale), top)) : _mm512_setzero_ps();
    };
    for (long j = 0; j < whole(keys); j += 2) {
      const __m512 even = exponential(j), odd = exponential(j + 1);
      total = _mm512_add_ps(total, _mm512_add_ps(even, odd));
      _mm512_storeu_si512(p + j * SIDE + 2 * c, paired(rounded(even, odd)));
    }
    const __m512 older = power_of_2(_mm512_sub_ps(load(most + c), top));
    for (long r = 0; r < D; r++) _mm512_storeu_ps(o + r * SIDE + c, _mm512_mul_ps(load(o + r * SIDE + c), older));
    _mm512_storeu_ps(sum + c, _mm512_fmadd_ps(load(sum + c), older, total));
    _mm512_storeu_ps(most + c, top);
  }
}

// Of 32 keys, P = 2^(scale s - lse) and dS = P (dP - mean), in rows of BLOCK queries, the latter also as pairs
static inline void changes(const float* s, const float* dp, const float* lse, const float* mean, bf16* p, bf16* ds,
                           bf16* ds_pairs, long keys, float scale) {
  for (long c = 0; c < SIDE; c += TILE) {
    const __m512 l = load(lse + c), mu = load(mean + c);
    for (long r = 0; r < SIDE; r += 2) {
      __m512 e[2] = {}, change[2] = {};
      for (long t = 0; t < 2 && r + t < keys; t++) {
        const long from = (r + t) * SIDE + c;
        e[t] = power_of_2(_mm512_fmsub_ps(load(s + from), all(scale), l));
        change[t] = _mm512_mul_ps(e[t], _mm512_sub_ps(load(dp + from), mu));
      }
      const long to = r * BLOCK + c;
      const __m512i rows = rounded(change[0], change[1]);
      store(p + to, p + to + BLOCK, rounded(e[0], e[1]));
      store(ds + to, ds + to + BLOCK, rows);
      _mm512_storeu_si512(ds_pairs + r * SIDE + 2 * c, paired(rows));
    }
  }
}

// --- Attention of n queries to m keys of d numbers. What is beyond m is no key; beyond n, queries that nobody asked

extern "C" {

// out = softmax(q k^T scale) v, and lse (batch heads, n), the log of each query's sum of exp, for the way back
void attention_forward(Heads q_, Heads k_, Heads v_, Heads out_, float* lse_, long batch, long heads, long n, long m, long d) {
  const long D = whole(d, STEP), parts = std::max(1L, omp_get_max_threads() / std::max(1L, batch * heads));
  const long part = (whole(n) / SIDE + parts - 1) / parts * SIDE;  // of a head's queries, where there are threads to spare
  const float scale = LOG2_E / std::sqrt(float(d));                // scores for powers of 2
  const Size scores = {SIDE, SIDE, whole(d, 2)};
#pragma omp parallel
  {
    [[maybe_unused]] const Tiles tiles;
    Features q(n, d);
    Rows k(m, d);
    Columns v(m, d);
    Buffer<float> s(BLOCK * SIDE), o(D * SIDE), most(SIDE), sum(SIDE), row(D);
    Buffer<bf16> p(BLOCK * SIDE);
#pragma omp for collapse(2) schedule(dynamic)
    for (long h = 0; h < batch * heads; h++)
      for (long first = 0; first < n; first += part) {
        q.pack(q_.at(h, heads)), k.pack(k_.at(h, heads)), v.pack(v_.at(h, heads));
        for (long i = first; i < std::min(n, first + part); i += SIDE) {
          std::fill_n(most.data, SIDE, -1e30f), std::fill_n(sum.data, SIDE, 0), std::fill_n(o.data, D * SIDE, 0);
          for (long j0 = 0; j0 < m; j0 += BLOCK) {
            const long keys = std::min(BLOCK, m - j0), js = whole(keys);
            for (long j = 0; j < js; j += SIDE) product(&s[j * SIDE], SIDE, k(j0 + j), q(i), scores, false);
            exponentials(s.data, p.data, o.data, most.data, sum.data, keys, D, scale);
            for (long c = 0; c < D; c += SIDE)
              product(&o[c * SIDE], SIDE, v(c, j0), {p.data, 2 * SIDE, SIDE, SIDE * SIDE}, {part_of(D, c), SIDE, js}, true);
          }
          for (long c = 0; c < std::min(SIDE, n - i); c++) lse_[h * n + i + c] = most[c] / LOG2_E + std::log(sum[c]);
          for (long c = 0; c < SIDE; c++) sum[c] = 1 / sum[c];
          write_columns(out_.at(h, heads), i, n, o.data, row.data, d, sum.data);
        }
      }
  }
}

// With P = softmax(q k^T scale), and do the gradient of out: dv = P^T do, dP = do v^T, dS = P (dP - rowsum(do out)),
// dq = scale dS k and dk = scale dS^T q (Dao 2023, sections 2.2 and 3.1.2). A head is one thread's
void attention_backward(Heads q_, Heads k_, Heads v_, Heads out_, Heads do_, Heads dq_, Heads dk_, Heads dv_, const float* lse_,
                        long batch, long heads, long n, long m, long d) {
  const long D = whole(d, STEP), N = whole(n);
  const float scale = 1 / std::sqrt(float(d));
  const Size scores = {SIDE, SIDE, whole(d, 2)};
#pragma omp parallel
  {
    [[maybe_unused]] const Tiles tiles;
    Features q(n, d), g(n, d);
    Tokens q_tokens(n, d), g_tokens(n, d);
    Rows k(m, d), v(m, d);
    Columns k_columns(m, d);
    Buffer<float> s(SIDE * SIDE), dp(SIDE * SIDE), dq(N * D), dk(BLOCK * D), dv(BLOCK * D);
    Buffer<float> lse(N), mean(N), row(D), scales(SIDE);
    Buffer<bf16> p(BLOCK * BLOCK), ds(BLOCK * BLOCK), ds_pairs(BLOCK * BLOCK);
    std::fill_n(scales.data, SIDE, scale), std::fill_n(lse.data, N, 0), std::fill_n(mean.data, N, 0);
#pragma omp for schedule(dynamic)
    for (long h = 0; h < batch * heads; h++) {
      const Head out = out_.at(h, heads), gradient = do_.at(h, heads);
      q.pack(q_.at(h, heads)), q_tokens.pack(q_.at(h, heads)), g.pack(gradient), g_tokens.pack(gradient);
      k.pack(k_.at(h, heads)), k_columns.pack(k_.at(h, heads)), v.pack(v_.at(h, heads));
      for (long i = 0; i < n; i++) {
        lse[i] = lse_[h * n + i] * LOG2_E;
        mean[i] = 0;
        for (long c = 0; c < d; c++) mean[i] += number(out[i][c]) * number(gradient[i][c]);
      }
      for (long j0 = 0; j0 < m; j0 += BLOCK) {
        const long keys = std::min(BLOCK, m - j0), js = whole(keys);
        for (long i0 = 0; i0 < n; i0 += BLOCK) {
          const long is = std::min(BLOCK, N - i0);
          for (long j = 0; j < js; j += SIDE)
            for (long i = 0; i < is; i += SIDE) {
              product(s.data, SIDE, k(j0 + j), q(i0 + i), scores, false);
              product(dp.data, SIDE, v(j0 + j), g(i0 + i), scores, false);
              const long at = j * BLOCK + i, pairs = i * BLOCK + j * SIDE, rest = keys - j;
              changes(s.data, dp.data, &lse[i0 + i], &mean[i0 + i], &p[at], &ds[at], &ds_pairs[pairs], rest, LOG2_E * scale);
            }
          for (long j = 0; j < js; j += SIDE)
            for (long c = 0; c < D; c += SIDE)
              product(&dv[j * D + c], D, {&p[j * BLOCK], BLOCK, 32}, g_tokens(i0, c), {SIDE, part_of(D, c), is}, i0 > 0);
          for (long j = 0; j < js; j += SIDE)
            for (long c = 0; c < D; c += SIDE)
              product(&dk[j * D + c], D, {&ds[j * BLOCK], BLOCK, 32}, q_tokens(i0, c), {SIDE, part_of(D, c), is}, i0 > 0);
          for (long i = 0; i < is; i += SIDE)
            for (long c = 0; c < D; c += SIDE) {  // transposed, (N / 32, D, 32)
              const Right pairs = {&ds_pairs[i * BLOCK], 2 * SIDE, SIDE, SIDE * SIDE};
              product(&dq[(i0 + i) * D + c * SIDE], SIDE, k_columns(c, j0), pairs, {part_of(D, c), SIDE, js}, j0 > 0);
            }
        }
        for (long j = 0; j < keys; j++) {
          write_row(dk_.at(h, heads)[j0 + j], &dk[j * D], d, scale);
          write_row(dv_.at(h, heads)[j0 + j], &dv[j * D], d, 1);
        }
      }
      for (long i = 0; i < n; i += SIDE) write_columns(dq_.at(h, heads), i, n, &dq[i * D], row.data, d, scales.data);
    }
  }
}
}
