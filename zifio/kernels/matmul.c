/* Matrix products over row-major matrices, and weights repacked into panels for the sampler.
 *
 * A panel is NR neighbouring columns of B, stored row behind row, so that the tile reads it in one stream. A product
 * packs one block of a panel at a time into the thread's memory; the sampler, which multiplies few rows by the same
 * weights again and again, keeps them packed. Both sum in the same order (tile.h). */
#include "tile.h"

#define PIECES 8
static __thread struct { float *at; i64 n; } piece[PIECES];

float *scratch(int which, i64 n_floats) {
    if (piece[which].n < n_floats) {
        free(piece[which].at);
        piece[which].n = up(n_floats + n_floats / 4, 16);
        piece[which].at = aligned_alloc(64, 4 * piece[which].n);
        if (!piece[which].at) abort();
    }
    return piece[which].at;
}

/* Rows [k, k + n) of panel p of B (element (k, j) at b[k * rb + j * cb]), missing columns as zeros. */
static void pack_block(const float *b, i64 rb, i64 cb, i64 p, i64 n_columns, i64 k, i64 n, float *out) {
    i64 width = least(NR, n_columns - p * NR);
    b += k * rb + p * NR * cb;
    if (width < NR) memset(out, 0, 4 * n * NR);
    if (cb == 1 && width == NR)
        for (i64 r = 0; r < n; r++)
            for (int j = 0; j < NV; j++) store(out + r * NR + j * VL, load(b + r * rb + j * VL));
    else if (cb == 1)
        for (i64 r = 0; r < n; r++) memcpy(out + r * NR, b + r * rb, 4 * width);
    else /* a transpose: a few source rows at a time, so that reads and writes both stay in cache */
        for (i64 r0 = 0; r0 < n; r0 += 16)
            for (i64 j = 0; j < width; j++)
                for (i64 r = r0; r < least(r0 + 16, n); r++) out[r * NR + j] = b[r * rb + j * cb];
}

/* All row tiles of one block of one panel; rows are cut evenly so that no tile is left nearly empty. */
static void sweep(i64 m, i64 n, const float *a, i64 ra, i64 ka, const float *panel, float *c, i64 ldc, i64 width,
                  int go_on) {
    i64 n_tiles = (m + MR - 1) / MR;
    float edge[MR * NR];
    for (i64 t = 0, at = 0; t < n_tiles; t++) {
        i64 rows = (m - at + n_tiles - t - 1) / (n_tiles - t);
        float *out = c + at * ldc;
        if (width == NR) {
            tile(rows, n, a + at * ra, ra, ka, panel, NR, out, ldc, go_on);
        } else { /* the last panel is narrower than a tile: through memory of full width */
            for (i64 i = 0; go_on && i < rows; i++) memcpy(edge + i * NR, out + i * ldc, 4 * width);
            tile(rows, n, a + at * ra, ra, ka, panel, NR, edge, NR, go_on);
            for (i64 i = 0; i < rows; i++) memcpy(out + i * ldc, edge + i * NR, 4 * width);
        }
        at += rows;
    }
}

/* Blocks are summed from 0 and then added to the total, so that a long inner index loses less to rounding. */
static void add_block(i64 m, i64 n, const float *a, i64 ra, i64 ka, const float *panel, float *c, i64 ldc, i64 width,
                      int go_on) {
    if (!go_on) {
        sweep(m, n, a, ra, ka, panel, c, ldc, width, 0);
        return;
    }
    float block[MR * NR];
    i64 n_tiles = (m + MR - 1) / MR;
    for (i64 t = 0, at = 0; t < n_tiles; t++) {
        i64 rows = (m - at + n_tiles - t - 1) / (n_tiles - t);
        tile(rows, n, a + at * ra, ra, ka, panel, NR, block, NR, 0);
        for (i64 i = 0; i < rows; i++) {
            float *out = c + (at + i) * ldc;
            if (width == NR)
                for (int j = 0; j < NV; j++) store(out + j * VL, load(out + j * VL) + load(block + i * NR + j * VL));
            else
                for (i64 j = 0; j < width; j++) out[j] += block[i * NR + j];
        }
        at += rows;
    }
}

static void panels(i64 first, i64 last, i64 m, i64 n, i64 k, const float *a, i64 ra, i64 ka, const float *b, i64 rb,
                   i64 cb, float *c, i64 ldc, int go_on) {
    float *packed = scratch(0, KC * NR);
    for (i64 p = first; p < last; p++)
        for (i64 k0 = 0; k0 < k; k0 += KC) {
            i64 depth = least(KC, k - k0);
            pack_block(b, rb, cb, p, n, k0, depth, packed);
            add_block(m, depth, a + k0 * ka, ra, ka, packed, c + p * NR, ldc, least(NR, n - p * NR), go_on || k0);
        }
}

/* C[m, n] (+)= A[m, k] B[k, n] on the calling thread. */
void product(i64 m, i64 n, i64 k, const float *a, i64 ra, i64 ka, const float *b, i64 rb, i64 cb, float *c, i64 ldc,
             int go_on) {
    panels(0, (n + NR - 1) / NR, m, n, k, a, ra, ka, b, rb, cb, c, ldc, go_on);
}

#define ROWS 1024     /* rows of A that one thread multiplies by a packed block before it packs the next */

/* Work is dealt out in pieces as threads come for it, since on a shared machine one of them may be held up: a few
 * panels at a time where there are many, else (and where a thread would pack them again and again) rows. */
INLINE i64 panels_at_a_time(i64 n_panels) { return n_panels >= 64 ? n_panels / 32 : 1; }

/* A few rows only read the weights, and memory is read fastest in long streams: two pieces a thread. */
#define FEW 4
INLINE i64 packed_panels_at_a_time(i64 m, i64 n_panels, i64 n_threads) {
    return m > FEW ? panels_at_a_time(n_panels) : (n_panels + 2 * n_threads - 1) / (2 * n_threads);
}
INLINE i64 rows_at_a_time(i64 m, i64 n_panels, i64 n_threads) {
    if (n_panels >= 4 * n_threads || m < 2 * MR * n_threads) return least(m, ROWS);
    return up((m + 4 * n_threads - 1) / (4 * n_threads), MR);
}

/* The same on all threads. */
API void zifio_matmul(i64 m, i64 n, i64 k, const float *a, i64 ra, i64 ka, const float *b, i64 rb, i64 cb, float *c,
                      i64 ldc, int go_on) {
    i64 n_panels = (n + NR - 1) / NR, rows = rows_at_a_time(m, n_panels, omp_get_max_threads());
    i64 width = rows == least(m, ROWS) ? panels_at_a_time(n_panels) : n_panels;
    i64 across = (n_panels + width - 1) / width, pieces = across * ((m + rows - 1) / rows);
#pragma omp parallel for schedule(dynamic) if (m * n * k > ENOUGH)
    for (i64 piece = 0; piece < pieces; piece++) {
        i64 row = piece / across * rows, p = piece % across * width;
        panels(p, least(p + width, n_panels), least(rows, m - row), n, k, a + row * ra, ra, ka, b, rb, cb,
               c + row * ldc, ldc, go_on);
    }
}

/* Tile t of A[m, n]^T, rows [m0, m0 + depth) of A, in the order in which it is read. */
static void turn(i64 t, i64 m0, i64 depth, i64 n, const float *a, i64 lda, float *turned) {
    i64 rows = least(MR, n - t * MR);
    for (i64 r = 0; r < depth; r++)
        for (i64 i = 0; i < rows; i++) turned[(t * KC + r) * MR + i] = a[(m0 + r) * lda + t * MR + i];
}

/* Tiles [first, last) of C[n, k] (+)= A^T B for one block of rows, which `turned` and `packed` hold; panel p of B. */
static void turned_tiles(i64 first, i64 last, i64 p, i64 depth, i64 n, i64 k, const float *turned, const float *packed,
                         float *c, i64 ldc, int go_on) {
    for (i64 t = first; t < last; t++)
        add_block(least(MR, n - t * MR), depth, turned + t * KC * MR, 1, MR, packed, c + t * MR * ldc + p * NR, ldc,
                  least(NR, k - p * NR), go_on);
}

/* C[n, k] += A[m, n]^T B[m, k] on the calling thread. A is turned block by block, so that tiles read it in order. */
void product_transposed(i64 m, i64 n, i64 k, const float *a, i64 lda, const float *b, i64 ldb, float *c, i64 ldc) {
    i64 n_tiles = (n + MR - 1) / MR, n_panels = (k + NR - 1) / NR;
    float *packed = scratch(0, KC * NR), *turned = scratch(6, n_tiles * MR * KC);
    for (i64 m0 = 0; m0 < m; m0 += KC) {
        i64 depth = least(KC, m - m0);
        for (i64 t = 0; t < n_tiles; t++) turn(t, m0, depth, n, a, lda, turned);
        for (i64 p = 0; p < n_panels; p++) {
            pack_block(b, ldb, 1, p, k, m0, depth, packed);
            turned_tiles(0, n_tiles, p, depth, n, k, turned, packed, c, ldc, 1);
        }
    }
}

/* C[n, k] (+)= A[m, n]^T B[m, k] on all threads: the gradient of a weight. */
API void zifio_matmul_transposed(i64 m, i64 n, i64 k, const float *a, i64 lda, const float *b, i64 ldb, float *c,
                                 i64 ldc, int go_on) {
    i64 n_tiles = (n + MR - 1) / MR, n_panels = (k + NR - 1) / NR;
    float *turned = aligned_alloc(64, 4 * up(n_tiles * MR * KC, 16));
    if (!turned) abort();
#pragma omp parallel if (m * n * k > ENOUGH)
    for (i64 m0 = 0; m0 < m; m0 += KC) {
        i64 depth = least(KC, m - m0);
#pragma omp for schedule(static)
        for (i64 t = 0; t < n_tiles; t++) turn(t, m0, depth, n, a, lda, turned);
        float *packed = scratch(0, KC * NR);
        i64 cut = n_panels >= 4 * omp_get_num_threads() ? 1 : least(n_tiles, 8); /* pieces of a panel */
#pragma omp for schedule(dynamic)
        for (i64 piece = 0; piece < n_panels * cut; piece++) {
            i64 p = piece / cut, t1 = (piece % cut + 1) * n_tiles / cut;
            pack_block(b, ldb, 1, p, k, m0, depth, packed);
            turned_tiles(piece % cut * n_tiles / cut, t1, p, depth, n, k, turned, packed, c, ldc, go_on || m0);
        }
    }
    free(turned);
}

/* Floats that the panels of a weight [n, k] take. */
API i64 zifio_packed_size(i64 n, i64 k) { return up(n, NR) * k; }

/* A weight [n, k] as panels of its transpose: panel p holds rows p NR ... of the weight, turned. */
API void zifio_pack(i64 n, i64 k, const float *weight, i64 ldw, float *packed) {
#pragma omp parallel for schedule(static) if (n * k > ENOUGH)
    for (i64 p = 0; p < (n + NR - 1) / NR; p++) pack_block(weight, 1, ldw, p, n, 0, k, packed + p * k * NR);
}

/* Back again: the weight [n, k] of its panels. A few rows of a panel at a time, so that reads and writes stay in cache. */
API void zifio_unpack(i64 n, i64 k, const float *packed, float *weight, i64 ldw) {
#pragma omp parallel for schedule(static) if (n * k > ENOUGH)
    for (i64 p = 0; p < (n + NR - 1) / NR; p++)
        for (i64 r0 = 0; r0 < k; r0 += 16)
            for (i64 j = 0; j < least(NR, n - p * NR); j++)
                for (i64 r = r0; r < least(r0 + 16, k); r++)
                    weight[(p * NR + j) * ldw + r] = packed[(p * k + r) * NR + j];
}

static void packed_panels(i64 first, i64 last, i64 m, i64 n, i64 k, const float *a, i64 lda, const float *packed,
                          float *c, i64 ldc) {
    for (i64 p = first; p < last; p++)
        for (i64 k0 = 0; k0 < k; k0 += KC)
            add_block(m, least(KC, k - k0), a + k0, lda, 1, packed + (p * k + k0) * NR, c + p * NR, ldc,
                      least(NR, n - p * NR), k0 > 0);
}

/* C[m, n] = A[m, k] weight^T on the calling thread. */
void product_packed(i64 m, i64 n, i64 k, const float *a, i64 lda, const float *packed, float *c, i64 ldc) {
    packed_panels(0, (n + NR - 1) / NR, m, n, k, a, lda, packed, c, ldc);
}

/* Panels first ... last - 1 of several weights, counted through, on some rows. */
static void columns_of(i64 first, i64 last, i64 row, i64 rows, i64 k, const float *a, i64 lda, const Columns *of) {
    for (i64 before = 0; before < last; of++) {
        i64 n_panels = (of->n + NR - 1) / NR, start = first > before ? first - before : 0;
        if (start < n_panels)
            packed_panels(start, least(n_panels, last - before), rows, of->n, k, a + row * lda, lda, of->packed,
                          of->c + row * of->n, of->n);
        before += n_panels;
    }
}

/* C[m, n] = A[m, k] weight^T for each of `count` weights, on all threads at once. */
void products_packed(i64 m, i64 k, const float *a, i64 lda, const Columns *of, int count) {
    i64 n_panels = 0, n_columns = 0, n_threads = omp_get_max_threads();
    for (int i = 0; i < count; i++) n_panels += (of[i].n + NR - 1) / NR, n_columns += of[i].n;
    i64 rows = rows_at_a_time(m, n_panels, n_threads);
    i64 width = rows == least(m, ROWS) ? packed_panels_at_a_time(m, n_panels, n_threads) : n_panels;
    i64 across = (n_panels + width - 1) / width, pieces = across * ((m + rows - 1) / rows);
#pragma omp parallel for schedule(dynamic) if (m * n_columns * k > ENOUGH)
    for (i64 piece = 0; piece < pieces; piece++) {
        i64 row = piece / across * rows, p = piece % across * width;
        columns_of(p, least(p + width, n_panels), row, least(rows, m - row), k, a, lda, of);
    }
}

/* C[m, n] = A[m, k] weight^T on all threads. */
API void zifio_matmul_packed(i64 m, i64 n, i64 k, const float *a, i64 lda, const float *packed, float *c) {
    Columns all = {n, packed, c};
    products_packed(m, k, a, lda, &all, 1);
}
