/* The tile: a few rows of A times a narrow panel of B, kept in registers. Everything else here is loops around it.
 *
 * Order of summation is the point. Every element of every product is summed over its inner index one after the other,
 * in blocks of KC that are then added in order. Nothing in that order depends on how many rows there are, where a row
 * stands, or how many threads run: one token alone and the same token in a batch get the same bits.
 *
 * Vectors are GCC's and clang's own extension, so the same code serves AVX-512, AVX2 and NEON. */
#ifndef ZIFIO_TILE_H
#define ZIFIO_TILE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_num_threads(void) { return 1; }
static inline int omp_get_max_threads(void) { return 1; }
#endif

typedef int64_t i64;

#if defined(__AVX512F__)
#define VL 16 /* floats of a vector */
#define NV 2  /* vectors of a panel's row */
#define MR 12 /* most rows of a tile */
#elif defined(__AVX2__)
#define VL 8
#define NV 2
#define MR 6
#else
#define VL 4
#define NV 4
#define MR 6
#endif
#define NR (VL * NV)  /* columns of a panel */
#define KC 256        /* inner indices summed in registers before they are added to the total */
#define PAGE 32       /* tokens of a page (engine/cache.py) */
#define ENOUGH 200000 /* multiplications that are worth waking the other threads */

typedef float vec __attribute__((vector_size(VL * 4)));
typedef float loose __attribute__((vector_size(VL * 4), aligned(4)));
typedef int32_t ivec __attribute__((vector_size(VL * 4)));

#define INLINE static inline __attribute__((always_inline))
#define ALONE static __attribute__((noinline))
#define API __attribute__((visibility("default")))

INLINE i64 least(i64 a, i64 b) { return a < b ? a : b; }
INLINE i64 up(i64 n, i64 to) { return (n + to - 1) / to * to; }
INLINE vec load(const float *p) { return *(const loose *)p; }
INLINE void store(float *p, vec x) { *(loose *)p = x; }

/* Ask for memory that will be read soon. */
INLINE void ahead(const float *p, i64 n_floats) {
    for (i64 i = 0; i < n_floats; i += 16) __builtin_prefetch(p + i);
}

/* The first n floats at p, zeros behind them. */
INLINE vec load_part(const float *p, i64 n) {
    vec x = {0};
    memcpy(&x, p, 4 * n);
    return x;
}

/* The sum of a vector's lanes, always by the same tree. */
INLINE float sum_lanes(vec x) {
    float lane[VL];
    store(lane, x);
    for (int half = VL / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lane[i] += lane[i + half];
    return lane[0];
}

/* e^x within 2 ulp; exactly 0 below -87 (minus infinity included). Cephes' polynomial. */
INLINE vec exp_vec(vec x) {
    const vec magic = (vec){0} + 12582912.0f, lowest = (vec){0} - 87.0f, highest = (vec){0} + 88.0f;
    ivec gone = x < lowest;
    x = (vec)(((ivec)x & ~gone) | ((ivec)lowest & gone));
    ivec high = x > highest;
    x = (vec)(((ivec)x & ~high) | ((ivec)highest & high));
    vec shifted = x * 1.44269504088896341f + magic, n = shifted - magic;
    vec r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
    vec p = (vec){0} + 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    vec y = p * (r * r) + r + 1.0f;
    ivec power = ((ivec)shifted - (ivec)magic) << 23;
    return (vec)((ivec)((vec)((ivec)y + power)) & ~gone);
}

/* C[rows, NR] (+)= A[rows, n] B[n, NR], summed in order of the inner index. A's element (i, k) is a[i * ra + k * ka],
 * B's row k begins at b + k * ldb. With `go_on` the sum starts from C instead of 0. */
#define DEFINE_TILE(R)                                                                                                 \
    INLINE void tile_##R(i64 n, const float *a, i64 ra, i64 ka, const float *b, i64 ldb, float *c, i64 ldc,            \
                         int go_on) {                                                                                  \
        vec sum[R][NV];                                                                                                \
        for (int i = 0; i < R; i++)                                                                                    \
            for (int j = 0; j < NV; j++) sum[i][j] = go_on ? load(c + i * ldc + j * VL) : (vec){0};                    \
        for (i64 k = 0; k < n; k++) {                                                                                  \
            vec row[NV];                                                                                               \
            for (int j = 0; j < NV; j++) row[j] = load(b + k * ldb + j * VL);                                          \
            _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {                                                     \
                float x = a[i * ra + k * ka];                                                                          \
                for (int j = 0; j < NV; j++) sum[i][j] += x * row[j];                                                  \
            }                                                                                                          \
        }                                                                                                              \
        for (int i = 0; i < R; i++)                                                                                    \
            for (int j = 0; j < NV; j++) store(c + i * ldc + j * VL, sum[i][j]);                                       \
    }
DEFINE_TILE(1) DEFINE_TILE(2) DEFINE_TILE(3) DEFINE_TILE(4) DEFINE_TILE(5) DEFINE_TILE(6)
#if MR > 6
DEFINE_TILE(7) DEFINE_TILE(8) DEFINE_TILE(9) DEFINE_TILE(10) DEFINE_TILE(11) DEFINE_TILE(12)
#endif

INLINE void tile(i64 rows, i64 n, const float *a, i64 ra, i64 ka, const float *b, i64 ldb, float *c, i64 ldc,
                 int go_on) {
    switch (rows) {
#define CASE(R) case R: tile_##R(n, a, ra, ka, b, ldb, c, ldc, go_on); break;
        CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MR > 6
        CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12)
#endif
    }
}

/* Memory of the calling thread, kept between calls and grown when needed; `which` tells several pieces apart. */
float *scratch(int which, i64 n_floats);

/* Single-threaded products, for use inside parallel loops; see matmul.c. */
void product(i64 m, i64 n, i64 k, const float *a, i64 ra, i64 ka, const float *b, i64 rb, i64 cb, float *c, i64 ldc,
             int go_on);
void product_transposed(i64 m, i64 n, i64 k, const float *a, i64 lda, const float *b, i64 ldb, float *c, i64 ldc);
void product_packed(i64 m, i64 n, i64 k, const float *a, i64 lda, const float *packed, float *c, i64 ldc);

/* A packed weight of n columns, and where its product goes, rows of n. */
typedef struct {
    i64 n;
    const float *packed;
    float *c;
} Columns;
void products_packed(i64 m, i64 k, const float *a, i64 lda, const Columns *of, int count);

void swiglu_row(const float *gate, const float *up, float *out, i64 n);
void swiglu_row_backward(const float *gate, const float *up, const float *dy, float *d_gate, float *d_up, i64 n);

#endif
