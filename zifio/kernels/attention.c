/* Causal attention with a fixed order of summation, over pages of keys and values.
 *
 * A page holds PAGE consecutive tokens of one sequence for one key/value head: its keys turned, [d_key][PAGE], so that
 * scores are a product like any other, and its values [PAGE][d_value up to whole panels]. The sampler keeps such pages;
 * the trainer fills them for the length of one call. Both then go through the same `attend_tile`, so one query gets the
 * same bits whether its keys were computed with it or long before, alone or in a batch.
 *
 * With a window a query sees its last keys alone: what lies before is skipped by pages, and masked within one. Zeros add
 * nothing to a sum, so its bits do not depend on where the first page of a tile is.
 *
 * A tile takes up to MR queries of one key/value head, of any sequences. Where neighbours share a page, as the samples
 * of one prompt do, it is read once for all of them. */
#include "tile.h"

typedef struct {
    i64 n_heads, n_key_heads, d_key, d_value; /* H, J, K, X */
    i64 window;                               /* keys that a query sees at most, its own among them; 0 for all */
    float scale;
} Shape;

INLINE i64 value_width(const Shape *s) { return up(s->d_value, NR); }

INLINE void put_key(const Shape *s, const float *key, float *page, i64 slot) {
    for (i64 i = 0; i < s->d_key; i++) page[i * PAGE + slot] = key[i];
}

INLINE void put_value(const Shape *s, const float *value, float *page, i64 slot) {
    i64 wide = value_width(s);
    memcpy(page + slot * wide, value, 4 * s->d_value);
    memset(page + slot * wide + s->d_value, 0, 4 * (wide - s->d_value));
}

typedef struct {
    const float *query; /* [d_key] */
    float *out;         /* [d_value] */
    float *lse;         /* log of the softmax's denominator, or nothing */
    const int32_t *table;
    i64 n_keys;
} Row;

/* The first of n keys that a query sees. */
INLINE i64 first_seen(const Shape *s, i64 n_keys) { return s->window && n_keys > s->window ? n_keys - s->window : 0; }

#define APART 4 /* queries with pages of their own that are computed side by side */

/* `tile` for R rows of A, each with a B of its own: the sums of tiles of one row, but while a row's sum waits for the one
 * before it, the others go on. */
#define DEFINE_APART(R)                                                                                                \
    INLINE void apart_##R(i64 n, const float *a, i64 lda, const float *const *b, i64 at, i64 ldb, float *c, i64 ldc,   \
                          int go_on) {                                                                                 \
        vec sum[R][NV];                                                                                                \
        for (int i = 0; i < R; i++)                                                                                    \
            for (int j = 0; j < NV; j++) sum[i][j] = go_on ? load(c + i * ldc + j * VL) : (vec){0};                    \
        for (i64 k = 0; k < n; k++)                                                                                    \
            _Pragma("GCC unroll 16") for (int i = 0; i < R; i++) {                                                     \
                float x = a[i * lda + k];                                                                              \
                for (int j = 0; j < NV; j++) sum[i][j] += x * load(b[i] + at + k * ldb + j * VL);                      \
            }                                                                                                          \
        for (int i = 0; i < R; i++)                                                                                    \
            for (int j = 0; j < NV; j++) store(c + i * ldc + j * VL, sum[i][j]);                                       \
    }
DEFINE_APART(1) DEFINE_APART(2) DEFINE_APART(3) DEFINE_APART(4)

/* Columns at .. at + NR of the products of some rows, each with a B of its own. */
static void apart(i64 rows, i64 n, const float *a, i64 lda, const float *const *b, i64 at, i64 ldb, float *c, i64 ldc,
                  int go_on) {
    switch (rows) {
#define CASE_APART(R) case R: apart_##R(n, a, lda, b, at, ldb, c, ldc, go_on); break;
        CASE_APART(1) CASE_APART(2) CASE_APART(3) CASE_APART(4)
    }
}

/* How many of the rows from r on, up to APART, have `n_keys` keys on a page, or any where that is 0; where they are. */
static i64 side_by_side(const Row *rows, i64 r, i64 n_rows, i64 page, i64 n_keys, const float *memory, i64 stride,
                        const float **b) {
    i64 count = 0;
    for (; count < APART && r + count < n_rows; count++) {
        i64 own = least(rows[r + count].n_keys - page * PAGE, PAGE);
        if (own <= 0 || (n_keys && own != n_keys)) break;
        b[count] = memory + rows[r + count].table[page] * stride;
    }
    return count;
}

/* Scores, softmax and weighted values of up to MR queries. Page i of a row is keys + table[i] * key_stride and values +
 * table[i] * value_stride. */
static void attend_tile(const Shape *s, const Row *rows, i64 n_rows, const float *keys, i64 key_stride,
                        const float *values, i64 value_stride) {
    i64 longest = 0, skipped = rows[0].n_keys, wide = value_width(s);
    for (i64 r = 0; r < n_rows; r++) {
        longest = rows[r].n_keys > longest ? rows[r].n_keys : longest;
        skipped = least(skipped, first_seen(s, rows[r].n_keys));
    }
    i64 first_page = skipped / PAGE, n_pages = up(longest, PAGE) / PAGE;
    skipped = first_page * PAGE;
    i64 width = n_pages * PAGE - skipped;
    float *scores = scratch(1, MR * width), *query = scratch(2, MR * s->d_key), *out = scratch(3, MR * wide);
    const float *each[APART];
    for (i64 r = 0; r < n_rows; r++)
        for (i64 i = 0; i < s->d_key; i++) query[r * s->d_key + i] = rows[r].query[i] * s->scale;
    for (i64 page = first_page; page < n_pages; page++)
        for (i64 r = 0, run; r < n_rows; r += run) {
            run = 1;
            if (rows[r].n_keys <= page * PAGE) continue;
            int32_t id = rows[r].table[page];
            while (r + run < n_rows && rows[r + run].n_keys > page * PAGE && rows[r + run].table[page] == id) run++;
            i64 n_apart = run > 1 ? 0 : side_by_side(rows, r, n_rows, page, 0, keys, key_stride, each);
            run = n_apart ? n_apart : run;
            for (i64 j = 0; j < PAGE; j += NR) {
                float *to = scores + r * width + page * PAGE - skipped + j;
                const float *from = query + r * s->d_key;
                if (n_apart) apart(run, s->d_key, from, s->d_key, each, j, PAGE, to, width, 0);
                else tile(run, s->d_key, from, s->d_key, 1, keys + id * key_stride + j, PAGE, to, width, 0);
            }
        }
    float total[MR];
    for (i64 r = 0; r < n_rows; r++) {
        float *row = scores + r * width;
        i64 n_keys = rows[r].n_keys - skipped, n = up(n_keys, VL), first = first_seen(s, rows[r].n_keys) - skipped;
        for (i64 i = 0; i < first; i++) row[i] = -INFINITY;
        for (i64 i = n_keys; i < n; i++) row[i] = -INFINITY;
        vec most = load(row), sum = {0};
        for (i64 i = VL; i < n; i += VL) {
            vec x = load(row + i);
            ivec more = x > most;
            most = (vec)(((ivec)x & more) | ((ivec)most & ~more));
        }
        float top = most[0];
        for (int i = 1; i < VL; i++) top = most[i] > top ? most[i] : top;
        for (i64 i = 0; i < n; i += VL) {
            vec e = exp_vec(load(row + i) - top);
            store(row + i, e);
            sum += e;
        }
        total[r] = sum_lanes(sum);
        if (rows[r].lse) *rows[r].lse = top + logf(total[r]);
    }
    memset(out, 0, 4 * n_rows * wide);
    for (i64 page = first_page; page < n_pages; page++)
        for (i64 r = 0, run; r < n_rows; r += run) {
            run = 1;
            i64 n_keys = least(rows[r].n_keys - page * PAGE, PAGE);
            if (n_keys <= 0) continue;
            int32_t id = rows[r].table[page];
            while (r + run < n_rows && least(rows[r + run].n_keys - page * PAGE, PAGE) == n_keys &&
                   rows[r + run].table[page] == id)
                run++;
            i64 n_apart = run > 1 ? 0 : side_by_side(rows, r, n_rows, page, n_keys, values, value_stride, each);
            run = n_apart ? n_apart : run;
            for (i64 j = 0; j < wide; j += NR) {
                const float *weight = scores + r * width + page * PAGE - skipped;
                float *to = out + r * wide + j;
                if (n_apart) apart(run, n_keys, weight, width, each, j, wide, to, wide, 1);
                else tile(run, n_keys, weight, width, 1, values + id * value_stride + j, wide, to, wide, 1);
            }
        }
    for (i64 r = 0; r < n_rows; r++)
        for (i64 i = 0; i < s->d_value; i++) rows[r].out[i] = out[r * wide + i] / total[r];
}

/* Floats of one page of one layer. */
API i64 zifio_key_page_size(i64 n_key_heads, i64 d_key) { return n_key_heads * d_key * PAGE; }
API i64 zifio_value_page_size(i64 n_key_heads, i64 d_value) { return n_key_heads * up(d_value, NR) * PAGE; }

/* Store the keys [N, J, K] and values [N, J, X] of N new tokens in their pages and slots. */
API void zifio_store(i64 n, i64 n_key_heads, i64 d_key, i64 d_value, const float *k, const float *v, const int32_t *page,
                     const int32_t *slot, float *keys, float *values) {
    Shape s = {0, n_key_heads, d_key, d_value, 0, 0};
    i64 key_size = d_key * PAGE, value_size = value_width(&s) * PAGE;
#pragma omp parallel for schedule(static) if (n > 64)
    for (i64 t = 0; t < n; t++)
        for (i64 j = 0; j < n_key_heads; j++) {
            i64 at = page[t] * n_key_heads + j;
            put_key(&s, k + (t * n_key_heads + j) * d_key, keys + at * key_size, slot[t]);
            put_value(&s, v + (t * n_key_heads + j) * d_value, values + at * value_size, slot[t]);
        }
}

/* Queries [N, H, K] of tokens that stand at `position` in the sequences `sequence`, over the pages of `table`. */
API void zifio_attend_pages(i64 n, i64 n_heads, i64 n_key_heads, i64 d_key, i64 d_value, i64 window, float scale,
                            const float *q, const int32_t *sequence, const int32_t *position, const int32_t *table,
                            i64 table_width, const float *keys, const float *values, float *out) {
    Shape s = {n_heads, n_key_heads, d_key, d_value, window, scale};
    i64 group = n_heads / n_key_heads, n_rows = n * group;
    i64 key_size = d_key * PAGE, value_size = value_width(&s) * PAGE;
    i64 per_tile = group < MR ? MR / group * group : MR;
    i64 n_tiles = (n_rows + per_tile - 1) / per_tile, most = n_rows * n_key_heads * (d_key + d_value) * table_width * PAGE;
#pragma omp parallel for schedule(dynamic) collapse(2) if (most > ENOUGH)
    for (i64 t = 0; t < n_tiles; t++)
        for (i64 j = 0; j < n_key_heads; j++) {
            Row rows[MR];
            i64 first = t * per_tile, count = least(per_tile, n_rows - first);
            for (i64 r = 0; r < count; r++) {
                i64 token = (first + r) / group, head = j * group + (first + r) % group;
                rows[r] = (Row){q + (token * n_heads + head) * d_key, out + (token * n_heads + head) * d_value, 0,
                                table + sequence[token] * table_width, position[token] + 1};
            }
            attend_tile(&s, rows, count, keys + j * key_size, n_key_heads * key_size, values + j * value_size,
                        n_key_heads * value_size);
        }
}

/* A span: `count` tokens in a row from token `start` on, that continue the `n_prefix` tokens from `prefix` on. */
typedef struct {
    i64 start, count, prefix, n_prefix;
} Span;

/* Token t of a span with its prefix, among all tokens. */
INLINE i64 token_of(const Span *p, i64 t) { return t < p->n_prefix ? p->prefix + t : p->start + t - p->n_prefix; }

/* A span's keys and values of head j, its prefix first, as pages in the thread's memory. */
static void fill_pages(const Shape *s, const Span *p, i64 j, const float *k, const float *v, float *keys, float *values) {
    for (i64 t = 0; t < p->n_prefix + p->count; t++) {
        i64 at = token_of(p, t) * s->n_key_heads + j;
        put_key(s, k + at * s->d_key, keys + t / PAGE * s->d_key * PAGE, t % PAGE);
        put_value(s, v + at * s->d_value, values + t / PAGE * value_width(s) * PAGE, t % PAGE);
    }
}

static int32_t *counting(i64 n) {
    int32_t *table = (int32_t *)scratch(4, n);
    for (i64 i = 0; i < n; i++) table[i] = i;
    return table;
}

/* Causal attention within each span, its prefix included; q [N, H, K], k [N, J, K], v [N, J, X]. */
API void zifio_attend_spans(i64 n_spans, const Span *spans, i64 n_heads, i64 n_key_heads, i64 d_key, i64 d_value,
                            i64 window, float scale, const float *q, const float *k, const float *v, float *out,
                            float *lse) {
    Shape s = {n_heads, n_key_heads, d_key, d_value, window, scale};
    i64 group = n_heads / n_key_heads, wide = value_width(&s);
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (i64 m = 0; m < n_spans; m++)
        for (i64 j = 0; j < n_key_heads; j++) {
            const Span *p = spans + m;
            i64 n_pages = (p->n_prefix + p->count + PAGE - 1) / PAGE;
            float *keys = scratch(5, n_pages * d_key * PAGE), *values = scratch(6, n_pages * wide * PAGE);
            int32_t *table = counting(n_pages);
            fill_pages(&s, p, j, k, v, keys, values);
            for (i64 first = 0; first < p->count * group; first += MR) {
                Row rows[MR];
                i64 count = least(MR, p->count * group - first);
                for (i64 r = 0; r < count; r++) {
                    i64 token = (first + r) / group, head = j * group + (first + r) % group;
                    i64 at = (p->start + token) * n_heads + head;
                    i64 n_keys = p->n_prefix + token + 1;
                    rows[r] = (Row){q + at * d_key, out + at * d_value, lse ? lse + at : 0, table, n_keys};
                }
                attend_tile(&s, rows, count, keys, d_key * PAGE, values, wide * PAGE);
            }
        }
}

#define QUERIES 96 /* query rows whose scores the backward pass holds at a time */

typedef struct {
    const float *q, *k, *v, *out, *lse, *d_out;
    float *dq, *dk, *dv;
} Tensors;

/* One span and key/value head. Keys and values are gathered first, and their gradients added to their places last. */
static void span_backward(const Shape *s, const Span *p, i64 j, const Tensors *x) {
    i64 group = s->n_heads / s->n_key_heads, n = p->n_prefix + p->count, n_rows = p->count * group;
    i64 d_key = s->d_key, d_value = s->d_value, wide = up(n, VL);
    float *query = scratch(1, QUERIES * d_key), *d_query = scratch(2, QUERIES * d_key);
    float *d_rows = scratch(3, QUERIES * d_value), *key = scratch(4, 2 * n * (d_key + d_value));
    float *value = key + n * d_key, *d_keys = value + n * d_value, *d_values = d_keys + n * d_key;
    float *weight = scratch(5, QUERIES * wide), *d_weight = scratch(6, QUERIES * wide);
    for (i64 t = 0; t < n; t++) {
        i64 at = token_of(p, t) * s->n_key_heads + j;
        memcpy(key + t * d_key, x->k + at * d_key, 4 * d_key);
        memcpy(value + t * d_value, x->v + at * d_value, 4 * d_value);
    }
    memset(d_keys, 0, 4 * n * (d_key + d_value));
    for (i64 first = 0; first < n_rows; first += QUERIES) {
        i64 count = least(QUERIES, n_rows - first), from = first_seen(s, p->n_prefix + first / group + 1);
        i64 seen = p->n_prefix + (first + count - 1) / group + 1 - from, width = up(seen, VL);
#define AT(r) ((p->start + (first + (r)) / group) * s->n_heads + j * group + (first + (r)) % group)
        for (i64 r = 0; r < count; r++) {
            for (i64 i = 0; i < d_key; i++) query[r * d_key + i] = x->q[AT(r) * d_key + i] * s->scale;
            memcpy(d_rows + r * d_value, x->d_out + AT(r) * d_value, 4 * d_value);
        }
        product(count, seen, d_key, query, d_key, 1, key + from * d_key, 1, d_key, weight, width, 0);
        product(count, seen, d_value, d_rows, d_value, 1, value + from * d_value, 1, d_value, d_weight, width, 0);
        for (i64 r = 0; r < count; r++) {
            i64 last = p->n_prefix + (first + r) / group - from, least_seen = first_seen(s, last + from + 1) - from;
            float *w = weight + r * width, *dw = d_weight + r * width, delta = 0;
            for (i64 i = 0; i < d_value; i++) delta += d_rows[r * d_value + i] * x->out[AT(r) * d_value + i];
            for (i64 i = 0; i < least_seen; i++) w[i] = -INFINITY, dw[i] = 0;
            for (i64 i = last + 1; i < width; i++) w[i] = -INFINITY, dw[i] = 0;
            for (i64 i = 0; i < width; i += VL) {
                vec weights = exp_vec(load(w + i) - x->lse[AT(r)]);
                store(w + i, weights);
                store(dw + i, weights * (load(dw + i) - delta));
            }
        }
        product(seen, d_value, count, weight, 1, width, d_rows, d_value, 1, d_values + from * d_value, d_value, 1);
        product(seen, d_key, count, d_weight, 1, width, query, d_key, 1, d_keys + from * d_key, d_key, 1);
        product(count, d_key, seen, d_weight, width, 1, key + from * d_key, d_key, 1, d_query, d_key, 0);
        for (i64 r = 0; r < count; r++)
            for (i64 i = 0; i < d_key; i++) x->dq[AT(r) * d_key + i] = d_query[r * d_key + i] * s->scale;
#undef AT
    }
    for (i64 t = 0; t < n; t++) {
        i64 at = token_of(p, t) * s->n_key_heads + j;
        for (i64 i = 0; i < d_key; i++) x->dk[at * d_key + i] += d_keys[t * d_key + i];
        for (i64 i = 0; i < d_value; i++) x->dv[at * d_value + i] += d_values[t * d_value + i];
    }
}

/* Gradients of `zifio_attend_spans`: dq is written, dk and dv are added to. With P the attention weights, dP = dO V^T:
 *     dV = P^T dO    dS = P (dP - sum(dO O))    dQ = dS K scale    dK = dS^T Q scale      (FlashAttention, algorithm 4)
 * A span and those that continue it are one thread's work, since they add to the same keys. */
API void zifio_attend_spans_backward(i64 n_spans, const Span *spans, i64 n_heads, i64 n_key_heads, i64 d_key, i64 d_value,
                                     i64 window, float scale, const float *q, const float *k, const float *v,
                                     const float *out, const float *lse, const float *d_out, float *dq, float *dk,
                                     float *dv) {
    Shape s = {n_heads, n_key_heads, d_key, d_value, window, scale};
    Tensors x = {q, k, v, out, lse, d_out, dq, dk, dv};
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (i64 m = 0; m < n_spans; m++)
        for (i64 j = 0; j < n_key_heads; j++) {
            if (spans[m].n_prefix) continue; /* done with the span that it continues */
            i64 last = m + 1;
            while (last < n_spans && spans[last].n_prefix) last++;
            for (i64 i = m; i < last; i++) span_backward(&s, spans + i, j, &x);
        }
}
