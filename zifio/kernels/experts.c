/* Mixture of experts: every token through its own experts only (DeepSeekMoE, arXiv:2401.06066).
 *
 * Pairs (token, choice) are sorted by expert; each expert multiplies its tokens in one product; a token's outputs are
 * then weighed and added in the order of its choices, so that what else is in the batch cannot change them. */
#include "tile.h"

typedef struct {
    i64 n, d, f, n_experts, n_active; /* N, D, F, E, A */
} Shape;

/* order[p]: the pair at place p when sorted by expert; place: its inverse; first[e]: where expert e begins. */
static void sort_pairs(const Shape *s, const i64 *expert, i64 *order, i64 *place, i64 *first) {
    memset(first, 0, 8 * (s->n_experts + 1));
    for (i64 p = 0; p < s->n * s->n_active; p++) first[expert[p] + 1]++;
    for (i64 e = 0; e < s->n_experts; e++) first[e + 1] += first[e];
    i64 *next = malloc(8 * s->n_experts);
    if (!next) abort();
    memcpy(next, first, 8 * s->n_experts);
    for (i64 p = 0; p < s->n * s->n_active; p++) {
        place[p] = next[expert[p]]++;
        order[place[p]] = p;
    }
    free(next);
}

#define ROWS 512 /* tokens of one expert that a thread takes at a time: for each it packs the expert's weights anew */

/* out [N, D]. Kept for the gradient: order, place [N A], first [E + 1], hidden [N A, 2 F] before the gate, and
 * each pair's output y [N A, D]. Weights [E, 2 F, D] (gate above up) and [E, D, F], and, unless null, the same packed. */
API void zifio_experts(i64 n, i64 d, i64 f, i64 n_experts, i64 n_active, const float *x, const i64 *expert,
                       const float *gate, const float *gate_up, const float *down, const float *packed_gate_up,
                       i64 gate_up_size, const float *packed_down, i64 down_size, i64 *order, i64 *place, i64 *first,
                       float *hidden, float *y, float *out) {
    Shape s = {n, d, f, n_experts, n_active};
    sort_pairs(&s, expert, order, place, first);
#pragma omp parallel if (n * n_active * d * f > 50000)
    {
#pragma omp for schedule(dynamic) nowait
        for (i64 piece = 0; piece < n_experts * ((n + ROWS - 1) / ROWS); piece++) {
            i64 e = piece % n_experts, begin = first[e] + piece / n_experts * ROWS;
            i64 rows = least(ROWS, first[e + 1] - begin);
            if (rows <= 0) continue;
            float *in = scratch(1, ROWS * d), *active = scratch(2, ROWS * f);
            for (i64 r = 0; r < rows; r++) memcpy(in + r * d, x + order[begin + r] / n_active * d, 4 * d);
            float *h = hidden + begin * 2 * f;
            if (packed_gate_up) product_packed(rows, 2 * f, d, in, d, packed_gate_up + e * gate_up_size, h, 2 * f);
            else product(rows, 2 * f, d, in, d, 1, gate_up + e * 2 * f * d, 1, d, h, 2 * f, 0);
            for (i64 r = 0; r < rows; r++) swiglu_row(h + r * 2 * f, h + r * 2 * f + f, active + r * f, f);
            if (packed_down) product_packed(rows, d, f, active, f, packed_down + e * down_size, y + begin * d, d);
            else product(rows, d, f, active, f, 1, down + e * d * f, 1, f, y + begin * d, d, 0);
        }
#pragma omp barrier
#pragma omp for schedule(static)
        for (i64 t = 0; t < n; t++)
            for (i64 a = 0; a < n_active; a++) {
                const float *mine = y + place[t * n_active + a] * d;
                float g = gate[t * n_active + a];
                for (i64 i = 0; i < d; i++) {
                    float part = g * mine[i];
                    out[t * d + i] = a ? out[t * d + i] + part : part;
                }
            }
    }
}

/* a . b, and scaled = scale a. */
static float dot_and_scale(i64 n, const float *a, const float *b, float scale, float *scaled) {
    vec sum = {0};
    i64 i = 0;
    for (; i + VL <= n; i += VL) {
        vec x = load(a + i);
        sum += x * load(b + i);
        store(scaled + i, scale * x);
    }
    float dot = sum_lanes(sum);
    for (; i < n; i++) dot += a[i] * b[i], scaled[i] = scale * a[i];
    return dot;
}

/* Gradients of `zifio_experts`; the weights' are added to, and not computed where null (frozen experts); dx and d_gate
 * are written. */
API void zifio_experts_backward(i64 n, i64 d, i64 f, i64 n_experts, i64 n_active, const float *x, const float *gate,
                                const float *gate_up, const float *down, const i64 *order, const i64 *place,
                                const i64 *first, const float *hidden, const float *y, const float *d_out, float *dx,
                                float *d_gate, float *d_gate_up, float *d_down) {
    float *d_in = malloc(4 * n * n_active * d);
    if (!d_in) abort();
#pragma omp parallel if (n * n_active * d * f > 50000)
    {
#pragma omp for schedule(dynamic)
        for (i64 e = 0; e < n_experts; e++)
            for (i64 begin = first[e]; begin < first[e + 1]; begin += ROWS) { /* a multiple of KC: the same blocks */
                i64 rows = least(ROWS, first[e + 1] - begin);
                const float *h = hidden + begin * 2 * f;
                float *in = scratch(1, ROWS * d), *active = scratch(2, ROWS * f), *dy = scratch(3, ROWS * d);
                float *d_active = scratch(4, ROWS * f), *dh = scratch(5, ROWS * 2 * f);
                for (i64 r = 0; r < rows; r++) {
                    i64 pair = order[begin + r], token = pair / n_active;
                    memcpy(in + r * d, x + token * d, 4 * d);
                    d_gate[pair] = dot_and_scale(d, d_out + token * d, y + (begin + r) * d, gate[pair], dy + r * d);
                    swiglu_row(h + r * 2 * f, h + r * 2 * f + f, active + r * f, f);
                }
                if (d_down) product_transposed(rows, d, f, dy, d, active, f, d_down + e * d * f, f);
                product(rows, f, d, dy, d, 1, down + e * d * f, f, 1, d_active, f, 0);
                for (i64 r = 0; r < rows; r++)
                    swiglu_row_backward(h + r * 2 * f, h + r * 2 * f + f, d_active + r * f, dh + r * 2 * f,
                                        dh + r * 2 * f + f, f);
                if (d_gate_up)
                    product_transposed(rows, 2 * f, d, dh, 2 * f, in, d, d_gate_up + e * 2 * f * d, d);
                product(rows, d, 2 * f, dh, 2 * f, 1, gate_up + e * 2 * f * d, d, 1, d_in + begin * d, d, 0);
            }
#pragma omp for schedule(static)
        for (i64 t = 0; t < n; t++)
            for (i64 a = 0; a < n_active; a++)
                for (i64 i = 0; i < d; i++)
                    dx[t * d + i] = (a ? dx[t * d + i] : 0) + d_in[place[t * n_active + a] * d + i];
    }
    free(d_in);
}
