/* What happens between matrix products, one row at a time: norms, gates, rotations, and the softmax over the
 * vocabulary. A row's result never depends on its neighbours. */
#include "tile.h"

#define FOR_ROWS _Pragma("omp parallel for schedule(static) if (n * d > 16384)") for (i64 row = 0; row < n; row++)

INLINE vec part(const float *p, i64 i, i64 n) { return i + VL <= n ? load(p + i) : load_part(p + i, n - i); }

INLINE void put(float *p, i64 i, i64 n, vec x) {
    if (i + VL <= n) store(p + i, x);
    else memcpy(p + i, &x, 4 * (n - i));
}

INLINE float inverse_rms(const float *x, i64 d, float eps) {
    vec sum = {0};
    for (i64 i = 0; i < d; i += VL) {
        vec v = part(x, i, d);
        sum += v * v;
    }
    return 1.0f / sqrtf(sum_lanes(sum) / d + eps);
}

/* y = x / sqrt(mean(x^2) + eps) * weight over rows of d; row i of x begins at x + i * ldx, of y at y + i * d. */
API void zifio_rms_norm(i64 n, i64 d, const float *x, i64 ldx, const float *weight, float eps, float *y) {
    FOR_ROWS {
        float inverse = inverse_rms(x + row * ldx, d, eps);
        for (i64 i = 0; i < d; i += VL) put(y + row * d, i, d, part(x + row * ldx, i, d) * inverse * part(weight, i, d));
    }
}

/* dx, and dweight added to; either may be null. With u = x / rms: dx = (g w - u mean(g w u)) / rms, dw = sum over rows of g u. */
API void zifio_rms_norm_backward(i64 n, i64 d, const float *x, i64 ldx, const float *weight, float eps, const float *dy,
                                 float *dx, float *d_weight) {
    i64 wide = up(d, VL);
    float *sums = d_weight ? calloc(wide * omp_get_max_threads(), 4) : 0;
    if (d_weight && !sums) abort();
#pragma omp parallel if (n * d > 16384)
    {
        float *mine = d_weight ? sums + wide * omp_get_thread_num() : 0;
#pragma omp for schedule(static)
        for (i64 row = 0; row < n; row++) {
            const float *in = x + row * ldx, *g = dy + row * d;
            float inverse = inverse_rms(in, d, eps);
            vec dot = {0};
            for (i64 i = 0; i < d; i += VL) dot += part(g, i, d) * part(weight, i, d) * (part(in, i, d) * inverse);
            float mean = sum_lanes(dot) / d;
            for (i64 i = 0; i < d; i += VL) {
                vec unit = part(in, i, d) * inverse;
                if (dx) put(dx + row * d, i, d, (part(g, i, d) * part(weight, i, d) - unit * mean) * inverse);
                if (mine) store(mine + i, load(mine + i) + part(g, i, d) * unit);
            }
        }
    }
    for (i64 t = 0; d_weight && t < omp_get_max_threads(); t++)
        for (i64 i = 0; i < d; i++) d_weight[i] += sums[t * wide + i];
    free(sums);
}

INLINE vec sigmoid(vec x) { return 1.0f / (1.0f + exp_vec(-x)); }

/* silu(gate) * up. */
void swiglu_row(const float *gate, const float *up, float *out, i64 n) {
    for (i64 i = 0; i < n; i += VL) {
        vec g = part(gate, i, n);
        put(out, i, n, g * sigmoid(g) * part(up, i, n));
    }
}

API void zifio_swiglu(i64 n, i64 d, const float *gate, const float *up, i64 ld, float *out) {
    FOR_ROWS swiglu_row(gate + row * ld, up + row * ld, out + row * d, d);
}

/* d silu(x) / dx = s (1 + x (1 - s)), s the sigmoid. */
void swiglu_row_backward(const float *gate, const float *up, const float *dy, float *d_gate, float *d_up, i64 n) {
    for (i64 i = 0; i < n; i += VL) {
        vec g = part(gate, i, n), u = part(up, i, n), y = part(dy, i, n), s = sigmoid(g);
        put(d_gate, i, n, y * u * (s * (1.0f + g * (1.0f - s))));
        put(d_up, i, n, y * (g * s));
    }
}

API void zifio_swiglu_backward(i64 n, i64 d, const float *gate, const float *up, i64 ld, const float *dy, float *d_gate,
                               float *d_up) {
    FOR_ROWS swiglu_row_backward(gate + row * ld, up + row * ld, dy + row * d, d_gate + row * d, d_up + row * d, d);
}

API void zifio_sigmoid(i64 n, i64 d, const float *x, float *y) {
    FOR_ROWS for (i64 i = 0; i < d; i += VL) put(y + row * d, i, d, sigmoid(part(x + row * d, i, d)));
}

/* Softmax of rows of d, for a router. */
API void zifio_softmax(i64 n, i64 d, const float *x, float *y) {
    FOR_ROWS {
        const float *in = x + row * d;
        float top = in[0], *out = y + row * d;
        for (i64 i = 1; i < d; i++) top = in[i] > top ? in[i] : top;
        vec sum = {0};
        for (i64 i = 0; i < d; i += VL) {
            vec e = exp_vec(part(in, i, d) - top);
            put(out, i, d, e);
            sum += part(out, i, d);
        }
        float total = sum_lanes(sum);
        for (i64 i = 0; i < d; i += VL) put(out, i, d, part(out, i, d) / total);
    }
}

/* Each pair of every head's 2 half numbers turned by its token's angle; pairs are (i, i + half), or (2 i, 2 i + 1)
 * when `interleaved`, and come back as (i, i + half). `back` undoes the turn and the change of place, for the gradient.
 * Head h of token t begins at x + t * token_stride + h * head_stride; cosine and sine are [n, half]. */
API void zifio_rotate(i64 n, i64 heads, i64 half, const float *x, i64 token_stride, i64 head_stride, const float *cosine,
                      const float *sine, int interleaved, int back, float *y, i64 y_token_stride, i64 y_head_stride) {
#pragma omp parallel for schedule(static) if (n * heads * half > 8192)
    for (i64 t = 0; t < n; t++) {
        const float *c = cosine + t * half, *s = sine + t * half;
        for (i64 h = 0; h < heads; h++) {
            const float *in = x + t * token_stride + h * head_stride;
            float *out = y + t * y_token_stride + h * y_head_stride;
            if (!back && interleaved)
                for (i64 i = 0; i < half; i++) {
                    float a = in[2 * i], b = in[2 * i + 1];
                    out[i] = a * c[i] - b * s[i];
                    out[half + i] = b * c[i] + a * s[i];
                }
            else if (!back)
                for (i64 i = 0; i < half; i++) {
                    float a = in[i], b = in[half + i];
                    out[i] = a * c[i] - b * s[i];
                    out[half + i] = b * c[i] + a * s[i];
                }
            else
                for (i64 i = 0; i < half; i++) {
                    float a = in[i], b = in[half + i], first = a * c[i] + b * s[i], second = b * c[i] - a * s[i];
                    out[interleaved ? 2 * i : i] = first;
                    out[interleaved ? 2 * i + 1 : half + i] = second;
                }
        }
    }
}

typedef struct {
    float top, total;
} Denominator;

/* Largest scaled logit, and the sum of e^(scaled logit - largest). Neither this nor `logp_of` is inlined, so that sampler
 * and trainer run the same instructions: a compiler may fuse a product and a sum in one copy and not in another. */
ALONE Denominator denominator(const float *x, i64 d, float scale) {
    vec most = (vec){0} - INFINITY;
    i64 whole = d / VL * VL;
    for (i64 i = 0; i < whole; i += VL) {
        vec v = load(x + i) * scale;
        ivec more = v > most;
        most = (vec)(((ivec)v & more) | ((ivec)most & ~more));
    }
    float top = -INFINITY;
    for (int i = 0; i < VL; i++) top = most[i] > top ? most[i] : top;
    for (i64 i = whole; i < d; i++) top = x[i] * scale > top ? x[i] * scale : top;
    vec sum[4] = {{0}, {0}, {0}, {0}};
    i64 i = 0;
    for (; i + 4 * VL <= d; i += 4 * VL)
        for (int j = 0; j < 4; j++) sum[j] += exp_vec(load(x + i + j * VL) * scale - top);
    for (; i < d; i += VL) {
        vec v = (vec){0} - INFINITY;
        memcpy(&v, x + i, 4 * least(VL, d - i));
        sum[0] += exp_vec(v * scale - top);
    }
    return (Denominator){top, sum_lanes((sum[0] + sum[1]) + (sum[2] + sum[3]))};
}

/* log softmax(x * scale)[target]. */
ALONE float logp_of(const float *x, i64 target, float scale, Denominator z) {
    return (x[target] * scale - z.top) - logf(z.total);
}

/* The same of every row, each with a scale of its own; 0 stands for 1. */
API void zifio_logp(i64 n, i64 d, const float *logits, i64 ld, const float *scale, const i64 *target, float *logp) {
    FOR_ROWS {
        const float *x = logits + row * ld, by = scale[row] == 0 ? 1.0f : scale[row];
        logp[row] = logp_of(x, target[row], by, denominator(x, d, by));
    }
}

/* log softmax(logits * scale)[target] of every row, the log of the denominator, and with `entropy` given the entropy. */
API void zifio_token_logp(i64 n, i64 d, const float *logits, i64 ld, float scale, const i64 *target, float *logp,
                          float *lse, float *entropy) {
    FOR_ROWS {
        const float *x = logits + row * ld;
        Denominator z = denominator(x, d, scale);
        float log_total = logf(z.total);
        lse[row] = z.top + log_total;
        logp[row] = logp_of(x, target[row], scale, z);
        if (!entropy) continue;
        vec sum = {0}; /* of p (x - top): entropy = log total - that */
        for (i64 i = 0; i < d; i += VL) {
            vec v = (vec){0} + z.top / scale;
            memcpy(&v, x + i, 4 * least(VL, d - i));
            vec below = v * scale - z.top;
            vec e = exp_vec(below);
            if (i + VL > d) memset((float *)&e + (d - i), 0, 4 * (VL - (d - i)));
            sum += e * below;
        }
        entropy[row] = log_total - sum_lanes(sum) / z.total;
    }
}

/* The gradient with respect to the logits, in place: d_logp scale (onehot - softmax). */
API void zifio_token_logp_backward(i64 n, i64 d, float *logits, i64 ld, float scale, const i64 *target, const float *lse,
                                   const float *d_logp) {
    FOR_ROWS {
        float *x = logits + row * ld, factor = -d_logp[row] * scale;
        for (i64 i = 0; i < d; i += VL) put(x, i, d, exp_vec(part(x, i, d) * scale - lse[row]) * factor);
        x[target[row]] += d_logp[row] * scale;
    }
}

#define STRETCH 1024 /* tokens whose probabilities are summed before the search looks closer */

/* The first token at which the running sum of probabilities passes `uniform` of the whole, and its log-probability.
 * scale 0 stands for greedy: the likeliest token, its log-probability at scale 1. */
API void zifio_draw(i64 n, i64 d, const float *logits, i64 ld, const float *scale, const double *uniform, i64 *token,
                    float *logp) {
#pragma omp parallel for schedule(static) if (n * d > 16384)
    for (i64 row = 0; row < n; row++) {
        const float *x = logits + row * ld;
        float by = scale[row] == 0 ? 1.0f : scale[row];
        Denominator z = denominator(x, d, by);
        i64 chosen = d - 1, n_stretches = (d + STRETCH - 1) / STRETCH;
        if (scale[row] == 0) {
            chosen = 0;
            for (i64 i = 1; i < d; i++) chosen = x[i] > x[chosen] ? i : chosen;
        } else {
            float *sums = scratch(1, n_stretches), e[STRETCH];
            double total = 0, before = 0;
            for (i64 b = 0; b < n_stretches; b++) {
                vec sum = {0};
                for (i64 i = b * STRETCH; i < least(d, (b + 1) * STRETCH); i += VL) {
                    vec v = (vec){0} - INFINITY;
                    if (i + VL <= d) v = load(x + i);
                    else memcpy(&v, x + i, 4 * (d - i));
                    sum += exp_vec(v * by - z.top);
                }
                sums[b] = sum_lanes(sum);
                total += sums[b];
            }
            double goal = uniform[row] * total;
            i64 b = 0;
            while (b < n_stretches - 1 && before + sums[b] <= goal) before += sums[b++];
            i64 first = b * STRETCH, count = least(d - first, STRETCH);
            for (i64 i = 0; i < count; i += VL) {
                vec v = (vec){0} - INFINITY;
                memcpy(&v, x + first + i, 4 * least(VL, count - i));
                vec y = exp_vec(v * by - z.top);
                memcpy(e + i, &y, 4 * least(VL, count - i));
            }
            chosen = first + count - 1;
            for (i64 i = 0; i < count; i++)
                if ((before += e[i]) > goal) {
                    chosen = first + i;
                    break;
                }
            while (chosen > 0 && !(expf(x[chosen] * by - z.top) > 0)) chosen--; /* rounding may pass the last */
        }
        token[row] = chosen;
        logp[row] = logp_of(x, chosen, by, z);
    }
}
