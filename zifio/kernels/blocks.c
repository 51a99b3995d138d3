/* All layers of a dense decoder with grouped-query attention in one call, and a whole step of decoding from tokens to
 * hidden states in another, for the sampler.
 *
 * The same functions in the same order as the modules of models/decoder.py, so the same bits; what is saved is Python's
 * share, more than half of the time when a single reply of a small model is decoded. */
#include "tile.h"

typedef struct {
    i64 d, n_heads, n_key_heads, d_head, d_hidden;
    float eps, scale;
    const float *input_norm, *q, *k, *v, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm, *o, *o_bias, *post_norm, *gate, *up,
        *down;
    float *keys, *values;
} Block;

typedef struct {
    i64 n;
    const float *cosine, *sine;
    const int32_t *page, *slot, *sequence, *position, *table;
    i64 table_width;
    float *work;
} Pass;

void zifio_rms_norm(i64 n, i64 d, const float *x, i64 ldx, const float *weight, float eps, float *y);
void zifio_swiglu(i64 n, i64 d, const float *gate, const float *up, i64 ld, float *out);
void zifio_rotate(i64 n, i64 heads, i64 half, const float *x, i64 token_stride, i64 head_stride, const float *cosine,
                  const float *sine, int interleaved, int back, float *y, i64 y_token_stride, i64 y_head_stride);
void zifio_store(i64 n, i64 n_key_heads, i64 d_key, i64 d_value, const float *k, const float *v, const int32_t *page,
                 const int32_t *slot, float *keys, float *values);
void zifio_attend_pages(i64 n, i64 n_heads, i64 n_key_heads, i64 d_key, i64 d_value, i64 window, float scale, const float *q,
                        const int32_t *sequence, const int32_t *position, const int32_t *table, i64 table_width,
                        const float *keys, const float *values, float *out);

static void add_bias(i64 n, i64 d, const float *bias, float *y) {
    for (i64 t = 0; bias && t < n; t++)
        for (i64 i = 0; i < d; i++) y[t * d + i] += bias[i];
}

static void linear(i64 n, i64 d_out, i64 d_in, const float *x, const float *weight, const float *bias, float *y) {
    Columns all = {d_out, weight, y};
    products_packed(n, d_in, x, d_in, &all, 1);
    add_bias(n, d_out, bias, y);
}

/* A projection's result in `raw`, normed where the family norms its heads, rotated into `out`. */
static void turn(const Block *b, const Pass *p, i64 heads, const float *norm, float *raw, float *out) {
    if (norm) zifio_rms_norm(p->n * heads, b->d_head, raw, b->d_head, norm, b->eps, raw);
    zifio_rotate(p->n, heads, b->d_head / 2, raw, heads * b->d_head, b->d_head, p->cosine, p->sine, 0, 0, out,
                 heads * b->d_head, b->d_head);
}

static void add(float *x, const float *y, i64 n) {
    for (i64 i = 0; i < n; i++) x[i] += y[i];
}

/* Floats of `Pass.work` for one token. */
API i64 zifio_blocks_work(i64 d, i64 n_heads, i64 n_key_heads, i64 d_head, i64 d_hidden) {
    return 2 * d + (3 * n_heads + 3 * n_key_heads) * d_head + 3 * d_hidden;
}

/* The residual stream x [n, d] through the layers, in place. */
API void zifio_blocks(i64 n_blocks, const Block *blocks, const Pass *p, float *x) {
    for (i64 layer = 0; layer < n_blocks; layer++) {
        const Block *b = blocks + layer;
        i64 n = p->n, d = b->d, wide = b->n_heads * b->d_head, narrow = b->n_key_heads * b->d_head, f = b->d_hidden;
        float *normed = p->work, *out = normed + n * d, *raw_q = out + n * d, *raw_k = raw_q + n * wide;
        float *q = raw_k + n * narrow, *k = q + n * wide, *v = k + n * narrow, *attended = v + n * narrow;
        float *gate = attended + n * wide, *up = gate + n * f, *active = up + n * f;
        zifio_rms_norm(n, d, x, d, b->input_norm, b->eps, normed);
        products_packed(n, d, normed, d, (Columns[]){{wide, b->q, raw_q}, {narrow, b->k, raw_k}, {narrow, b->v, v}}, 3);
        add_bias(n, wide, b->q_bias, raw_q);
        add_bias(n, narrow, b->k_bias, raw_k);
        add_bias(n, narrow, b->v_bias, v);
        turn(b, p, b->n_heads, b->q_norm, raw_q, q);
        turn(b, p, b->n_key_heads, b->k_norm, raw_k, k);
        zifio_store(n, b->n_key_heads, b->d_head, b->d_head, k, v, p->page, p->slot, b->keys, b->values);
        zifio_attend_pages(n, b->n_heads, b->n_key_heads, b->d_head, b->d_head, 0, b->scale, q, p->sequence, p->position,
                           p->table, p->table_width, b->keys, b->values, attended);
        linear(n, d, wide, attended, b->o, b->o_bias, out);
        add(x, out, n * d);
        zifio_rms_norm(n, d, x, d, b->post_norm, b->eps, normed);
        products_packed(n, d, normed, d, (Columns[]){{f, b->gate, gate}, {f, b->up, up}}, 2);
        zifio_swiglu(n, f, gate, up, f, active);
        linear(n, d, f, active, b->down, 0, out);
        add(x, out, n * d);
    }
}

typedef struct {
    i64 n_blocks;
    const Block *blocks;
    i64 d, half, n_text, n_codes, n_positions;
    float eps;
    const float *text, *codes, *cosine, *sine, *norm;
} Whole;

/* Floats of `work` for one token of `zifio_decode` beside those of the blocks and of its table. */
API i64 zifio_decode_work(i64 half) { return 2 * half + 4; }

/* The normed hidden states [n, d] of one new token of each of n sequences, from its number: below n_text it is a row of
 * `text`, behind that of `codes`. Tables of pages are [n, width]. Returns 0, or 1 with nothing done where some token or
 * position lies beyond the tables. */
API i64 zifio_decode(const Whole *w, i64 n, const i64 *token, const i64 *position, const i64 *table, i64 width, float *work,
                     float *hidden) {
    for (i64 t = 0; t < n; t++)
        if (token[t] >= w->n_text + w->n_codes || position[t] >= w->n_positions) return 1;
    float *cosine = work, *sine = cosine + n * w->half;
    int32_t *page = (int32_t *)(sine + n * w->half), *slot = page + n, *sequence = slot + n, *where = sequence + n;
    int32_t *tables = where + n;
    Pass p = {n, cosine, sine, page, slot, sequence, where, tables, width, (float *)(tables + n * width)};
    for (i64 t = 0; t < n; t++) {
        i64 code = token[t] - w->n_text;
        memcpy(hidden + t * w->d, code < 0 ? w->text + token[t] * w->d : w->codes + code * w->d, 4 * w->d);
        memcpy(cosine + t * w->half, w->cosine + position[t] * w->half, 4 * w->half);
        memcpy(sine + t * w->half, w->sine + position[t] * w->half, 4 * w->half);
        page[t] = table[t * width + position[t] / PAGE];
        slot[t] = position[t] % PAGE, sequence[t] = t, where[t] = position[t];
        for (i64 i = 0; i < width; i++) tables[t * width + i] = table[t * width + i];
    }
    zifio_blocks(w->n_blocks, w->blocks, &p, hidden);
    zifio_rms_norm(n, w->d, hidden, w->d, w->norm, w->eps, hidden);
    return 0;
}
