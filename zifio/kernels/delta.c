/* Gated DeltaNet between its projections, token by token, with a fixed order of summation: short convolution, lengths of
 * queries and keys, the gated delta rule, the gated norm; see models/linear_attention.py.
 *
 * The sampler goes on with what a sequence remembers, the trainer begins with nothing. Both go through the same `token`,
 * so a token gets the same bits whether what came before it was computed now or long ago, alone or in a batch. */
#include "tile.h"

typedef struct {
    i64 n_key_heads, group; /* J, and value heads of each */
    i64 d_key, d_value, d_conv;
    float strongest, eps;
    const float *x;    /* of each token, for each key head: query, key, the group's values, the group's gates */
    const float *ba;   /* of each token, for each key head: the group's strengths, the group's decays */
    const float *conv; /* [d_conv][J][query, key, values], of the token itself last */
    const float *rate, *shift, *norm;
    float *out; /* [N, H, X] */
} Layer;

INLINE i64 mixed(const Layer *l) { return 2 * l->d_key + l->group * l->d_value; } /* what the convolution sees */
INLINE i64 width(const Layer *l) { return mixed(l) + l->group * l->d_value; }
INLINE i64 memory_size(const Layer *l) { return l->group * l->d_key * up(l->d_value, VL); } /* of a key head */
INLINE const float *block(const Layer *l, i64 token, i64 j) { return l->x + (token * l->n_key_heads + j) * width(l); }
INLINE vec load_most(const float *p, i64 n) { return n >= VL ? load(p) : load_part(p, n); }
INLINE vec silu(vec x) { return x / (1.0f + exp_vec(-x)); }

/* x scaled to the length `to`. */
INLINE void set_length(float *x, i64 n, float to) {
    vec sum = {0};
    for (i64 i = 0; i < n; i += VL) {
        vec part = load_most(x + i, n - i);
        sum += part * part;
    }
    float factor = to / sqrtf(sum_lanes(sum) + 1e-6f);
    for (i64 i = 0; i < n; i++) x[i] *= factor;
}

/* The rule for some vectors of a value: S [K][wide] in place, and the output. */
INLINE void update(i64 d_key, i64 wide, int n, float *s, const float *q, const float *k, const float *v, float decay,
                   float beta, float *out) {
    vec known[4] = {{0}}, delta[4], sum[4] = {{0}};
    for (i64 i = 0; i < d_key; i++)
        for (int j = 0; j < n; j++) known[j] += load(s + i * wide + j * VL) * (decay * k[i]);
    for (int j = 0; j < n; j++) delta[j] = (load(v + j * VL) - known[j]) * beta;
    for (i64 i = 0; i < d_key; i++)
        for (int j = 0; j < n; j++) {
            vec now = load(s + i * wide + j * VL) * decay + delta[j] * k[i];
            store(s + i * wide + j * VL, now);
            sum[j] += now * q[i];
        }
    for (int j = 0; j < n; j++) store(out + j * VL, sum[j]);
}

/* The rule for a whole value of `wide` floats, zeros behind its end. */
INLINE void advance(i64 d_key, i64 wide, float *s, const float *q, const float *k, const float *v, float decay,
                    float beta, float *out) {
    i64 i = 0;
    for (; i + 4 * VL <= wide; i += 4 * VL) update(d_key, wide, 4, s + i, q, k, v + i, decay, beta, out + i);
    for (; i < wide; i += VL) update(d_key, wide, 1, s + i, q, k, v + i, decay, beta, out + i);
}

/* One token of key head j; taps[w] is its block w tokens ago, or nothing. */
static void token(const Layer *l, i64 j, i64 at, const float *const *taps, float *memory) {
    i64 K = l->d_key, X = l->d_value, G = l->group, J = l->n_key_heads, n = mixed(l), wide = up(X, VL);
    float *act = scratch(1, n + VL), *value = scratch(2, 2 * wide), *out = value + wide;
    for (i64 i = 0; i < n; i += VL) {
        vec sum = {0};
        if (!l->d_conv) sum = load_most(taps[0] + i, n - i);
        for (i64 w = l->d_conv - 1; w >= 0; w--)
            if (taps[w])
                sum += load_most(taps[w] + i, n - i) * load_most(l->conv + ((l->d_conv - 1 - w) * J + j) * n + i, n - i);
        store(act + i, silu(sum));
    }
    set_length(act, K, 1 / sqrtf(K));
    set_length(act + K, K, 1);
    for (i64 g = 0; g < G; g++) {
        i64 head = j * G + g;
        const float *ba = l->ba + (at * J + j) * 2 * G, *gate = taps[0] + n + g * X;
        float shifted = ba[G + g] + l->shift[head];
        float decay = expf(-l->rate[head] * (shifted > 20 ? shifted : log1pf(expf(shifted))));
        float beta = l->strongest / (1 + expf(-ba[g])), *s = memory + g * K * wide;
        memset(value, 0, 4 * wide);
        memcpy(value, act + 2 * K + g * X, 4 * X);
        advance(K, wide, s, act, act + K, value, decay, beta, out);
        vec sum = {0};
        for (i64 i = 0; i < wide; i += VL) sum += load(out + i) * load(out + i);
        float factor = 1 / sqrtf(sum_lanes(sum) / X + l->eps), *to = l->out + (at * J * G + head) * X;
        for (i64 i = 0; i < X; i += VL) {
            vec y = load(out + i) * factor * load_most(l->norm + i, X - i) * silu(load_most(gate + i, X - i));
            memcpy(to + i, &y, 4 * least(VL, X - i));
        }
    }
}

#define MOST_TAPS 16

typedef struct {
    i64 start, count, prefix, n_prefix;
} Span;

INLINE i64 token_of(const Span *p, i64 t) { return t < p->n_prefix ? p->prefix + t : p->start + t - p->n_prefix; }

static void span(const Layer *l, const Span *p, i64 t, i64 j, float *memory) {
    const float *taps[MOST_TAPS];
    for (i64 w = 0; w < (l->d_conv ? l->d_conv : 1); w++) taps[w] = t < w ? 0 : block(l, token_of(p, t - w), j);
    token(l, j, token_of(p, t), taps, memory);
}

/* All tokens of all spans, as attention.c has them; a span that continues another begins with what that remembers. */
API void zifio_delta_spans(const Layer *l, i64 n_spans, const Span *spans) {
    i64 size = memory_size(l);
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (i64 m = 0; m < n_spans; m++)
        for (i64 j = 0; j < l->n_key_heads; j++) {
            if (spans[m].n_prefix) continue; /* done with the span that it continues */
            i64 last = m + 1;
            while (last < n_spans && spans[last].n_prefix) last++;
            float *memory = scratch(3, size * (last - m));
            memset(memory, 0, 4 * size);
            for (i64 t = 0; t < spans[m].count; t++) {
                span(l, spans + m, t, j, memory);
                for (i64 i = m + 1; i < last; i++)
                    if (spans[i].n_prefix == t + 1) memcpy(memory + (i - m) * size, memory, 4 * size);
            }
            for (i64 i = m + 1; i < last; i++)
                for (i64 t = 0; t < spans[i].count; t++)
                    span(l, spans + i, spans[i].n_prefix + t, j, memory + (i - m) * size);
        }
}

/* New tokens of a sequence, the first of them at position `first`; its memory and last tokens are at `slot`. */
typedef struct {
    i64 start, count, slot, first;
} Run;

/* Go on with sequences whose memories [J][group][K][up(X)] and last d_conv - 1 tokens [d_conv - 1][J][query, key, values]
 * are kept in slots. */
API void zifio_delta_slots(const Layer *l, i64 n_runs, const Run *runs, float *memories, float *tails) {
    i64 size = memory_size(l), J = l->n_key_heads, n = mixed(l), kept = l->d_conv ? l->d_conv - 1 : 0;
#pragma omp parallel for schedule(dynamic) collapse(2) if (n_runs * J > 1)
    for (i64 m = 0; m < n_runs; m++)
        for (i64 j = 0; j < J; j++) {
            const Run *r = runs + m;
            float *memory = memories + (r->slot * J + j) * size, *tail = tails + (r->slot * kept * J + j) * n;
            if (!r->first) {
                memset(memory, 0, 4 * size);
                for (i64 i = 0; i < kept; i++) memset(tail + i * J * n, 0, 4 * n);
            }
            for (i64 t = 0; t < r->count; t++) {
                const float *taps[MOST_TAPS];
                taps[0] = block(l, r->start + t, j);
                for (i64 w = 1; w <= kept; w++)
                    taps[w] = t >= w ? block(l, r->start + t - w, j)
                                     : r->first + t >= w ? tail + (kept + t - w) * J * n : 0;
                token(l, j, r->start + t, taps, memory);
            }
            for (i64 i = 0; i < kept; i++) {
                i64 t = r->count - kept + i;
                const float *from = t >= 0 ? block(l, r->start + t, j) : tail + (i + r->count) * J * n;
                memmove(tail + i * J * n, from, 4 * n);
            }
        }
}

/* The rule alone, for training. q and k [N, H, K], v and out [N, H, X], decay (not its logarithm) and beta [N, H]. */
typedef struct {
    i64 n_heads, d_key, d_value;
    const float *q, *k, *v, *decay, *beta, *d_out;
    float *out, *dq, *dk, *dv, *d_log_decay, *d_beta;
} Rule;

/* v or d_out of a token's head, zeros behind its end. */
INLINE void get_value(const Rule *r, const float *from, i64 at, i64 wide, float *to) {
    memset(to + wide - VL, 0, 4 * VL);
    memcpy(to, from + at * r->d_value, 4 * r->d_value);
}

static void rule_span(const Rule *r, const Span *p, i64 h, float *s, float *value, i64 first, i64 last) {
    i64 wide = up(r->d_value, VL);
    for (i64 t = first; t < last; t++) {
        i64 at = (p->start + t) * r->n_heads + h;
        get_value(r, r->v, at, wide, value);
        advance(r->d_key, wide, s, r->q + at * r->d_key, r->k + at * r->d_key, value, r->decay[at], r->beta[at],
                value + wide);
        if (r->out) memcpy(r->out + at * r->d_value, value + wide, 4 * r->d_value);
    }
}

/* Outputs of all spans. */
API void zifio_rule_spans(const Rule *r, i64 n_spans, const Span *spans) {
    i64 wide = up(r->d_value, VL), size = r->d_key * wide;
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (i64 m = 0; m < n_spans; m++)
        for (i64 h = 0; h < r->n_heads; h++) {
            if (spans[m].n_prefix) continue; /* done with the span that it continues */
            i64 last = m + 1;
            while (last < n_spans && spans[last].n_prefix) last++;
            float *memory = scratch(3, size * (last - m)), *value = scratch(2, 2 * wide);
            memset(memory, 0, 4 * size);
            for (i64 t = 0; t < spans[m].count; t++) {
                rule_span(r, spans + m, h, memory, value, t, t + 1);
                for (i64 i = m + 1; i < last; i++)
                    if (spans[i].n_prefix == t + 1) memcpy(memory + (i - m) * size, memory, 4 * size);
            }
            for (i64 i = m + 1; i < last; i++)
                rule_span(r, spans + i, h, memory + (i - m) * size, value, 0, spans[i].count);
        }
}

#define SEGMENT 16 /* tokens whose memories the backward pass holds at a time */

/* What is summed over the rows of S and dS, for some vectors of a value; dS gets what the output adds. */
INLINE void back_sums(i64 d_key, i64 wide, int n, const float *s, float *ds, const float *q, const float *k,
                      const float *d_out, float *known, float *d_delta) {
    vec seen[4] = {{0}}, change[4] = {{0}}, out[4];
    for (int j = 0; j < n; j++) out[j] = load(d_out + j * VL);
    for (i64 i = 0; i < d_key; i++)
        for (int j = 0; j < n; j++) {
            vec now = load(ds + i * wide + j * VL) + out[j] * q[i];
            store(ds + i * wide + j * VL, now);
            change[j] += now * k[i];
            seen[j] += load(s + i * wide + j * VL) * k[i];
        }
    for (int j = 0; j < n; j++) store(known + j * VL, seen[j]), store(d_delta + j * VL, change[j]);
}

/* One token back. S is the memory before it, dS that of its gradient, behind the token and then before it:
 *     dS += q dO^T    dD = dS^T k    dv = b dD    d log a = a (<S, dS> - (S^T k) dv)    db = dD (v - a S^T k)
 *     dq = a S dO + k (D dO)    dk = dS D - a S dv    dS = a (dS - k dv^T) */
static void token_back(const Rule *r, i64 at, const float *s, float *ds, float *work) {
    i64 K = r->d_key, wide = up(r->d_value, VL);
    const float *q = r->q + at * K, *k = r->k + at * K;
    float a = r->decay[at], b = r->beta[at], *v = work, *d_out = v + wide, *known = d_out + wide;
    float *delta = known + wide, *dv = delta + wide;
    get_value(r, r->v, at, wide, v);
    get_value(r, r->d_out, at, wide, d_out);
    vec dot = {0}, along = {0}, strength = {0}, fading = {0};
    i64 from = 0;
    for (; from + 4 * VL <= wide; from += 4 * VL)
        back_sums(K, wide, 4, s + from, ds + from, q, k, d_out + from, known + from, dv + from);
    for (; from < wide; from += VL)
        back_sums(K, wide, 1, s + from, ds + from, q, k, d_out + from, known + from, dv + from);
    for (i64 x = 0; x < wide; x += VL) {
        vec seen = load(known + x), d_delta = load(dv + x), rest = load(v + x) - seen * a;
        store(delta + x, rest * b);
        store(dv + x, d_delta * b);
        dot += rest * b * load(d_out + x);
        strength += d_delta * rest;
        along += seen * (d_delta * b);
    }
    float both = sum_lanes(dot);
    for (i64 i = 0; i < K; i++) {
        vec to_q = {0}, to_k = {0};
        for (i64 x = 0; x < wide; x += VL) {
            vec was = load(s + i * wide + x), d = load(ds + i * wide + x), change = load(dv + x);
            to_q += was * load(d_out + x);
            to_k += d * load(delta + x) - was * change * a;
            fading += was * d;
            store(ds + i * wide + x, (d - change * k[i]) * a);
        }
        r->dq[at * K + i] = a * sum_lanes(to_q) + k[i] * both;
        r->dk[at * K + i] = sum_lanes(to_k);
    }
    memcpy(r->dv + at * r->d_value, dv, 4 * r->d_value);
    r->d_beta[at] = sum_lanes(strength);
    r->d_log_decay[at] = a * sum_lanes(fading - along);
}

/* A span back, from the gradient of what it remembers in the end to that of what it began with, `s`, which is lost.
 * `branches` are the gradients of what others, which continue it, begin with. */
static void span_back(const Rule *r, const Span *p, i64 h, float *s, float *ds, const float *branches, i64 n_branches,
                      const Span *others, float *work) {
    i64 wide = up(r->d_value, VL), size = r->d_key * wide, n = (p->count + SEGMENT - 1) / SEGMENT;
    float *begins = scratch(4, n * size), *before = scratch(5, SEGMENT * size);
    for (i64 i = 0; i < n; i++) {
        memcpy(begins + i * size, s, 4 * size);
        rule_span(r, p, h, s, work, i * SEGMENT, least((i + 1) * SEGMENT, p->count));
    }
    for (i64 i = n - 1; i >= 0; i--) {
        i64 first = i * SEGMENT, count = least(SEGMENT, p->count - first);
        memcpy(before, begins + i * size, 4 * size);
        for (i64 t = 1; t < count; t++) {
            memcpy(before + t * size, before + (t - 1) * size, 4 * size);
            rule_span(r, p, h, before + t * size, work, first + t - 1, first + t);
        }
        for (i64 t = count - 1; t >= 0; t--) {
            for (i64 m = 0; m < n_branches; m++)
                if (others[m].n_prefix == first + t + 1)
                    for (i64 x = 0; x < size; x++) ds[x] += branches[m * size + x];
            token_back(r, (p->start + first + t) * r->n_heads + h, before + t * size, ds, work);
        }
    }
}

/* Gradients of `zifio_rule_spans`; nothing is written to `out`. */
API void zifio_rule_spans_backward(const Rule *r, i64 n_spans, const Span *spans) {
    i64 wide = up(r->d_value, VL), size = r->d_key * wide;
#pragma omp parallel for schedule(dynamic) collapse(2)
    for (i64 m = 0; m < n_spans; m++)
        for (i64 h = 0; h < r->n_heads; h++) {
            if (spans[m].n_prefix) continue;
            i64 n = 0; /* spans that continue this one */
            while (m + 1 + n < n_spans && spans[m + 1 + n].n_prefix) n++;
            const Span *others = spans + m + 1;
            float *memory = scratch(3, size * (n + 1)), *work = scratch(2, 5 * wide);
            float *gradients = scratch(1, size * (n + 1)), *own = gradients + n * size;
            memset(memory, 0, 4 * size);
            memset(gradients, 0, 4 * size * (n + 1));
            for (i64 t = 0; n && t < spans[m].count; t++) {
                rule_span(r, spans + m, h, memory, work, t, t + 1);
                for (i64 i = 0; i < n; i++)
                    if (others[i].n_prefix == t + 1) memcpy(memory + (i + 1) * size, memory, 4 * size);
            }
            for (i64 i = 0; i < n; i++)
                span_back(r, others + i, h, memory + (i + 1) * size, gradients + i * size, 0, 0, 0, work);
            memset(memory, 0, 4 * size);
            span_back(r, spans + m, h, memory, own, gradients, n, others, work);
        }
}

/* Floats of one row of a memory. */
API i64 zifio_delta_width(i64 d_value) { return up(d_value, VL); }
