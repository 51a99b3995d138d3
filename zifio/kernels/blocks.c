/* All layers of a dense decoder with grouped-query attention in one call, for the sampler.
 *
 * The same functions in the same order as the modules of models/decoder.py, so the same bits; what is saved is Python's
 * share, a quarter of the time when a single reply is decoded. */
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
void zifio_matmul_packed(i64 m, i64 n, i64 k, const float *a, i64 lda, const float *packed, float *c, i64 ldc);
void zifio_store(i64 n, i64 n_key_heads, i64 d_key, i64 d_value, const float *k, const float *v, const int32_t *page,
                 const int32_t *slot, float *keys, float *values);
void zifio_attend_pages(i64 n, i64 n_heads, i64 n_key_heads, i64 d_key, i64 d_value, float scale, const float *q,
                        const int32_t *sequence, const int32_t *position, const int32_t *table, i64 table_width,
                        const float *keys, const float *values, float *out);

static void linear(i64 n, i64 d_out, i64 d_in, const float *x, const float *weight, const float *bias, float *y) {
    zifio_matmul_packed(n, d_out, d_in, x, d_in, weight, y, d_out);
    for (i64 t = 0; bias && t < n; t++)
        for (i64 i = 0; i < d_out; i++) y[t * d_out + i] += bias[i];
}

/* The projection to `heads` heads, normed where the family norms them, and rotated. `spare` is as large as the result. */
static void heads_of(const Block *b, const Pass *p, i64 heads, const float *x, const float *weight, const float *bias,
                     const float *norm, float *spare, float *out) {
    linear(p->n, heads * b->d_head, b->d, x, weight, bias, norm ? out : spare);
    if (norm) zifio_rms_norm(p->n * heads, b->d_head, out, b->d_head, norm, b->eps, spare);
    zifio_rotate(p->n, heads, b->d_head / 2, spare, heads * b->d_head, b->d_head, p->cosine, p->sine, 0, 0, out,
                 heads * b->d_head, b->d_head);
}

static void add(float *x, const float *y, i64 n) {
    for (i64 i = 0; i < n; i++) x[i] += y[i];
}

/* Floats of `Pass.work` for one token. */
API i64 zifio_blocks_work(i64 d, i64 n_heads, i64 n_key_heads, i64 d_head, i64 d_hidden) {
    return 2 * d + (3 * n_heads + 2 * n_key_heads) * d_head + 3 * d_hidden;
}

/* The residual stream x [n, d] through the layers, in place. */
API void zifio_blocks(i64 n_blocks, const Block *blocks, const Pass *p, float *x) {
    for (i64 layer = 0; layer < n_blocks; layer++) {
        const Block *b = blocks + layer;
        i64 n = p->n, d = b->d, wide = b->n_heads * b->d_head, narrow = b->n_key_heads * b->d_head, f = b->d_hidden;
        float *normed = p->work, *out = normed + n * d, *spare = out + n * d, *q = spare + n * wide, *k = q + n * wide;
        float *v = k + n * narrow, *attended = v + n * narrow, *gate = attended + n * wide, *up = gate + n * f;
        float *active = up + n * f;
        zifio_rms_norm(n, d, x, d, b->input_norm, b->eps, normed);
        heads_of(b, p, b->n_heads, normed, b->q, b->q_bias, b->q_norm, spare, q);
        heads_of(b, p, b->n_key_heads, normed, b->k, b->k_bias, b->k_norm, spare, k);
        linear(n, narrow, d, normed, b->v, b->v_bias, v);
        zifio_store(n, b->n_key_heads, b->d_head, b->d_head, k, v, p->page, p->slot, b->keys, b->values);
        zifio_attend_pages(n, b->n_heads, b->n_key_heads, b->d_head, b->d_head, b->scale, q, p->sequence, p->position,
                           p->table, p->table_width, b->keys, b->values, attended);
        linear(n, d, wide, attended, b->o, b->o_bias, out);
        add(x, out, n * d);
        zifio_rms_norm(n, d, x, d, b->post_norm, b->eps, normed);
        linear(n, f, d, normed, b->gate, 0, gate);
        linear(n, f, d, normed, b->up, 0, up);
        zifio_swiglu(n, f, gate, up, f, active);
        linear(n, d, f, active, b->down, 0, out);
        add(x, out, n * d);
    }
}
