// Temperature, top-k, top-p and the draw for one row of logits, by the threads of one block: the rules, tie by tie, of
// hqtvae_fast/ops/kernels/sample_logits/reference.py.
//
// The row stands in shared memory as fp32 logits over the temperature; what a filter drops becomes -inf there. Both
// filters are radix selections. Then every code gets a rough score in place, and only the few (mostly one) that come
// near the best one are scored exactly, from the logit itself: the winner is the definition's (see near() in noise.h).
//
// Where top-p's cumulative sum comes within 1e-5 of p, the reference's own fp32 sums decide by their rounding; masses
// here are exact to 2^-32 a code.
#pragma once

#include "noise.h"
#include "selection.h"

namespace hqtvae {

struct Draw {
  float temperature;
  int64_t top_k;  // as many as there are codes, or more: no filter
  float top_p;    // 1 or more: no filter
  int64_t seed, step, position;
};

struct RowScratch {
  SelectionScratch selection;
  uint64_t values[Team::kThreads];
};

// Classifier-free guidance of one logit, each operation rounded by itself: c where the scale is 1 or both are equal.
DEVICE float guided(float shown, float withheld, float scale) {
  if (scale == 1.0f || shown == withheld) return shown;
  return add(withheld, mul(scale, add(shown, -withheld)));
}

// Score and index as one number: the larger score wins, of equal ones the lower index.
DEVICE uint64_t candidate(float score, int index) {
  return uint64_t{ordered(score)} << 32 | ~static_cast<uint32_t>(index);
}
DEVICE int index_of(uint64_t candidate) { return static_cast<int>(~static_cast<uint32_t>(candidate)); }
DEVICE float score_of(uint64_t candidate) {
  const uint32_t key = static_cast<uint32_t>(candidate >> 32);
  return as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key);
}

DEVICE void keep_top_k(Team team, RowScratch& s, float* row, int codes, int64_t k) {
  const auto key = [&](int i) { return ordered(row[i]); };
  const auto one = [](int) { return uint64_t{1}; };
  const uint32_t edge = radix_select(team, s.selection, codes, key, one, static_cast<uint64_t>(k)).key;
  team.each([&](int t) {
    for (int i = t; i < codes; i += Team::kThreads)
      if (key(i) < edge) row[i] = -infinity();
  });
}

// Sorted by logit, equal ones by index: all up to and including the first at which the cumulative mass reaches p.
DEVICE void keep_top_p(Team team, RowScratch& s, float* row, int codes, float top, float p) {
  const auto key = [&](int i) { return ordered(row[i]); };
  // Of an infinite top too: inf - inf is NaN.
  const auto mass = [&](float x) { return x == top ? uint64_t{1} << 32 : fixed_exp(add(x, -top)); };
  const auto total_of = [&](auto weight) {
    team.each([&](int t) {
      s.values[t] = 0;
      for (int i = t; i < codes; i += Team::kThreads) s.values[t] += weight(i);
    });
    return team.sum(s.values);
  };
  const uint64_t total = total_of([&](int i) { return mass(row[i]); });
  const double wanted = static_cast<double>(p) * static_cast<double>(total);
  uint64_t target = static_cast<uint64_t>(wanted);
  target += static_cast<double>(target) < wanted || target == 0;
  const Edge edge = radix_select(team, s.selection, codes, key, [&](int i) { return mass(row[i]); }, target);
  const auto tied = [&](int i) { return uint64_t{key(i) == edge.key}; };
  const float value = score_of(uint64_t{edge.key} << 32);
  const uint64_t wanted_ties = (target - edge.above + mass(value) - 1) / mass(value);
  uint32_t last = 0;  // codes are counted down, so that the first ones are the largest
  if (total_of(tied) > wanted_ties) {
    const auto countdown = [](int i) { return ~static_cast<uint32_t>(i); };
    last = radix_select(team, s.selection, codes, countdown, tied, wanted_ties).key;
  }
  team.each([&](int t) {
    for (int i = t; i < codes; i += Team::kThreads)
      if (key(i) < edge.key || (key(i) == edge.key && ~static_cast<uint32_t>(i) < last)) row[i] = -infinity();
  });
}

// The code drawn. `load(i)`: logit i in fp32, called twice at most; `row`: room for `codes` floats, rounded up to a
// multiple of 4, in shared memory. Sets *invalid where a logit is NaN, which then counts as -inf.
template <class Load>
DEVICE int draw_from_row(Team team, RowScratch& s, float* row, int codes, Load load, const Draw& draw, bool* invalid) {
  const bool greedy = draw.top_k == 1;
  const auto scaled = [&](float logit) { return greedy ? logit : div(logit, draw.temperature); };
  team.each([&](int t) {
    uint64_t best = 0;
    for (int i = t; i < codes; i += Team::kThreads) {
      float logit = load(i);
      if (is_nan(logit)) *invalid = true, logit = -infinity();
      row[i] = scaled(logit);
      const uint64_t own = candidate(row[i], i);
      best = own > best ? own : best;
    }
    s.values[t] = best;
  });
  const uint64_t top = team.max(s.values);
  if (greedy) return index_of(top);
  if (draw.top_k < codes) keep_top_k(team, s, row, codes, draw.top_k);
  if (draw.top_p < 1.0f) keep_top_p(team, s, row, codes, score_of(top), draw.top_p);
  team.each([&](int t) {
    uint64_t best = 0;
    for (int block = t; 4 * block < codes; block += Team::kThreads) {
      const Words words = random_words(draw.seed, draw.step, draw.position, block);
      for (int lane = 0; lane < 4; ++lane) {
        const int i = 4 * block + lane;
        if (i >= codes) break;
        row[i] += rough_gumbel(words.lane[lane]);
        const uint64_t own = candidate(row[i], i);
        best = own > best ? own : best;
      }
    }
    s.values[t] = best;
  });
  const float limit = near(score_of(team.max(s.values)));
  team.each([&](int t) {
    uint64_t best = 0;
    for (int i = t; i < codes; i += Team::kThreads) {
      if (!(row[i] >= limit)) continue;
      float score = -infinity();
      if (row[i] > score) {  // neither dropped nor -inf
        const Words words = random_words(draw.seed, draw.step, draw.position, i / 4);
        const uint32_t pair[2] = {i & 1 ? words.lane[1] : words.lane[0], i & 1 ? words.lane[3] : words.lane[2]};
        score = add(scaled(load(i)), gumbel(i & 2 ? pair[1] : pair[0]));
      }
      const uint64_t own = candidate(score, i);
      best = own > best ? own : best;
    }
    s.values[t] = best;
  });
  return index_of(team.max(s.values));
}

}  // namespace hqtvae
