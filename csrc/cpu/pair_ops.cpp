// The pair engine's ops: products of tiles, threads, and what is kept between tiles, around one instruction set's kernels.
//
// A block is kPairLanes own rows. Its products with kOther rows of the other set at a time are a tile that stays in cache. Products, and
// sums of products, are made of pieces of fixed size, so that results do not depend on the threads.

#include "products.h"

#include <torch/library.h>

#include <array>

namespace fastloss {
namespace {

constexpr int64_t kOther = 256;         // rows of the other set in a tile
constexpr int64_t kMaxGroups = 32;      // of blocks, each of which keeps its own statistics of all rows of the other set
constexpr int64_t kMaxLabel = 1 << 24;  // places and labels are kept in floats

#define FASTLOSS_COUNT(...) +1
constexpr int kFunctors = 0 FASTLOSS_PAIR(FASTLOSS_COUNT);
#undef FASTLOSS_COUNT

// run(begin, end) over items, each worth a thread.
template <class Run>
void each_item(int64_t items, const Run& run) {
  if (items <= 1) run(0, items);
  else at::parallel_for(0, items, 1, run);
}

struct Inputs {
  Tensor a, b;                // what gradients are multiplied by: in the accumulation dtype, or bfloat16 by pairs of rows if `rounds`
  Tensor scored_a, scored_b;  // what scores are products of: a and b in the accumulation dtype, or bfloat16
  bool rounds;                // gradients of scores to bfloat16, before they are multiplied
  Tensor row_bias, column_bias, row_label, column_label, codes;
  std::vector<Tensor> params;
  bool itself;  // b is a
  at::ScalarType type;  // of the accumulation
  at::ArrayRef<int64_t> terms;
  at::ArrayRef<double> constants;
  std::optional<int64_t> skip;
  double scale, cap;
  PairTransform transform;

  int64_t count() const { return static_cast<int64_t>(terms.size()) / 4; }
  bool of_rows(int64_t term) const { return terms[4 * term + 3] == 0; }
  PairReduce reduce(int64_t term) const { return static_cast<PairReduce>(terms[4 * term + 1]); }
};

Tensor checked(const char* name, const OptionalTensor& given, at::ScalarType type, int64_t size) {
  if (!given) return {};
  TORCH_CHECK(given->dim() == 1 && given->size(0) == size && given->scalar_type() == type && given->is_contiguous(), "pair engine: ", name,
              " must be contiguous ", type, " (", size, "), got ", given->scalar_type(), given->sizes());
  return *given;
}

Inputs describe(const Tensor& a, const OptionalTensor& b, const OptionalTensor& row_bias, const OptionalTensor& column_bias,
                const OptionalTensor& row_label, const OptionalTensor& column_label, const OptionalTensor& codes,
                const c10::List<OptionalTensor>& params, std::optional<int64_t> skip, double scale, int64_t transform, double cap,
                at::ArrayRef<int64_t> terms, at::ArrayRef<double> constants, bool scores_alone) {
  TORCH_CHECK(a.dim() == 2 && (!b || (b->dim() == 2 && b->size(1) == a.size(1) && b->scalar_type() == a.scalar_type())),
              "pair engine: a and b must be (N, D) and (M, D) of one dtype, got ", a.sizes(), " and ", b ? b->sizes() : a.sizes());
  const int64_t count = static_cast<int64_t>(terms.size()) / 4;
  TORCH_CHECK(count >= 1 && count <= kMaxPairTerms && terms.size() % 4 == 0 && constants.size() == terms.size() / 4 * kPairConstants &&
                  static_cast<int64_t>(params.size()) == 2 * count,
              "pair engine: wanted 1 to ", kMaxPairTerms, " terms of 4 numbers, ", kPairConstants, " constants and 2 parameters, got ",
              terms.size(), ", ", constants.size(), " and ", params.size());
  scalar_of(a);
  const at::ScalarType acc = accumulate_type(a);
  const int64_t rows = a.size(0), columns = b ? b->size(0) : rows;
  TORCH_CHECK(rows < kMaxLabel && columns < kMaxLabel, "pair engine: at most ", kMaxLabel, " rows, got ", rows, " and ", columns);
  TORCH_CHECK(b || !skip || *skip == 0, "pair engine: of a set compared with itself skip must be 0, got ", *skip);
  Inputs in;
  const bool narrow = a.scalar_type() == at::kBFloat16 && a.size(1) > 0 && a.size(1) % 2 == 0 && has_bfloat16_products();
  in.itself = !b;
  in.type = acc;
  in.rounds = narrow && may_round();
  if (!narrow || !scores_alone) {
    const auto made = [&](const Tensor& rows) {
      if (in.rounds) return by_pairs(rows.contiguous());
      return rows.scalar_type() == acc ? rows.contiguous() : copied(rows, acc);
    };
    in.a = made(a);
    in.b = b ? made(*b) : in.a;
  }
  in.scored_a = narrow ? a.contiguous() : in.a;
  in.scored_b = !narrow ? in.b : b ? b->contiguous() : in.scored_a;
  in.row_bias = checked("row_bias", row_bias, acc, rows);
  in.column_bias = b ? checked("column_bias", column_bias, acc, columns) : in.row_bias;
  in.row_label = checked("row_label", row_label, acc, rows);
  in.column_label = b ? checked("column_label", column_label, acc, columns) : in.row_label;
  TORCH_CHECK(in.row_label.defined() == in.column_label.defined(), "pair engine: labels of both sets or of none are wanted");
  if (codes) {
    TORCH_CHECK(codes->scalar_type() == at::kByte && codes->dim() == 2 && codes->size(0) == columns && codes->size(1) == rows,
                "pair engine: codes must be uint8 (", columns, ", ", rows, "), got ", codes->scalar_type(), codes->sizes());
    in.codes = *codes;
  }
  for (int64_t k = 0; k < count; ++k) {
    const int64_t* term = terms.data() + 4 * k;
    const auto one_of = [](int64_t value, int64_t count) { return value >= 0 && value < count; };
    TORCH_CHECK(one_of(term[0], kFunctors) && one_of(term[1], 3) && one_of(term[2], 3) && one_of(term[3], 2),
                "pair engine: no such term: functor ", term[0], ", reduce ", term[1], ", mask ", term[2], ", side ", term[3]);
    in.params.push_back(checked("a row's parameter", params.get(2 * k), acc, rows));
    in.params.push_back(checked("a column's parameter", params.get(2 * k + 1), acc, columns));
  }
  TORCH_CHECK(transform >= 0 && transform <= 3, "pair engine: no transform ", transform);
  in.terms = terms;
  in.constants = constants;
  in.skip = skip;
  in.scale = scale;
  in.cap = cap;
  in.transform = static_cast<PairTransform>(transform);
  return in;
}

const void* data(const Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

// The call with the rows as own set, or the columns.
PairCall make_call(const Inputs& in, bool own_is_row) {
  PairCall call{};
  call.own = (own_is_row ? in.scored_a : in.scored_b).size(0);
  call.other = (own_is_row ? in.scored_b : in.scored_a).size(0);
  call.features = in.scored_a.size(1);
  call.own_bias = data(own_is_row ? in.row_bias : in.column_bias);
  call.other_bias = data(own_is_row ? in.column_bias : in.row_bias);
  call.own_label = data(own_is_row ? in.row_label : in.column_label);
  call.other_label = data(own_is_row ? in.column_label : in.row_label);
  if (in.codes.defined()) {
    call.codes = in.codes.const_data_ptr<uint8_t>();
    call.codes_own_stride = in.codes.stride(own_is_row ? 1 : 0);
    call.codes_other_stride = in.codes.stride(own_is_row ? 0 : 1);
  }
  call.skips = in.skip.has_value();
  call.skip = own_is_row ? in.skip.value_or(0) : -in.skip.value_or(0);
  call.scale = in.scale;
  call.transform = in.transform;
  call.cap = in.cap;
  return call;
}

// Enters term k, in the role of the call's own rows or of the other ones.
PairTerm& add_term(PairCall& call, const Inputs& in, int64_t k, bool own, bool own_is_row) {
  PairTerm& term = call.term[call.terms++];
  term.functor = static_cast<int>(in.terms[4 * k]);
  term.reduce = in.reduce(k);
  term.mask = static_cast<PairMask>(in.terms[4 * k + 2]);
  term.own = own;
  term.own_is_row = own_is_row;
  std::copy_n(in.constants.data() + kPairConstants * k, kPairConstants, term.constants);
  term.own_param = data(in.params[2 * k + !own_is_row]);
  term.other_param = data(in.params[2 * k + own_is_row]);
  return term;
}

// Products of blocks of own rows and tiles of other ones, in T; rows are of T, or bfloat16.
template <class T>
class Scores {
 public:
  Scores(const Tensor& own, const Tensor& other)
      : own_(own), other_(other), narrow_(own.scalar_type() != c10::CppTypeToScalarType<T>::value), features_(own.size(1)),
        packed_(features_ * kPairLanes) {}

  // The rows of a block as columns, 0 behind the last. A pair of 16-bit numbers moves as one of 32 bits, as their products want it.
  void pack(const PairTile& tile) {
    const int64_t columns = narrow_ ? features_ / 2 : features_;
    if (tile.own_count < kPairLanes) std::fill(packed_.begin(), packed_.end(), T(0));
    kernels->pair_turn(narrow_ ? Scalar::kFloat : scalar_of(own_), at(own_, tile.own_begin), tile.own_count, columns, columns,
                       packed_.data(), kPairLanes);
  }

  // The tile's scores, before they are scaled.
  void multiply_tile(const PairTile& tile) {
    const void* others = at(other_, tile.other_begin);
    T* to = static_cast<T*>(tile.scores);
    if constexpr (std::is_same_v<T, float>) {
      if (narrow_) {
        return multiply_pairs(tile.other_count, kPairLanes, features_, static_cast<const at::BFloat16*>(others), features_,
                              reinterpret_cast<const at::BFloat16*>(packed_.data()), kPairLanes, to, tile.stride);
      }
    }
    multiply<T>(tile.other_count, kPairLanes, features_, static_cast<const T*>(others), features_, packed_.data(), kPairLanes, to,
                tile.stride);
  }

 private:
  const void* at(const Tensor& rows, int64_t row) const {
    return static_cast<const char*>(rows.const_data_ptr()) + row * features_ * rows.element_size();
  }

  const Tensor &own_, &other_;
  bool narrow_;
  int64_t features_;
  std::vector<T> packed_;
};

// Where the scores of a tile are kept in (blocks, rows of the other set, kPairLanes) of the first blocks; null of another one.
template <class T>
T* kept_tile(const Tensor& kept, const PairTile& tile) {
  const int64_t block = tile.own_begin / kPairLanes;
  if (!kept.defined() || block >= kept.size(0)) return nullptr;
  return static_cast<T*>(kept.data_ptr()) + (block * kept.size(1) + tile.other_begin) * kPairLanes;
}

template <class T>
void forward(const Inputs& in, std::vector<Tensor>& found, const Tensor& scores_kept) {
  PairCall call = make_call(in, true);
  bool any_other = false;
  for (int64_t k = 0; k < in.count(); ++k) {
    add_term(call, in, k, in.of_rows(k), true);
    any_other |= !in.of_rows(k);
  }
  const Scalar scalar = std::is_same_v<T, double> ? Scalar::kDouble : Scalar::kFloat;
  const int64_t blocks = (call.own + kPairLanes - 1) / kPairLanes, groups = any_other ? std::min(blocks, kMaxGroups) : blocks;
  const T none = -std::numeric_limits<T>::infinity();
  // Of each term a group's statistics of the rows of the other set.
  struct Kept {
    std::vector<T> top;
    std::vector<double> sum, count;
    Kept(int64_t size, T top, double count) : top(size, top), sum(size, 0.0), count(size, count) {}
  };
  const auto empty_count = [&](int64_t k) { return in.reduce(k) == PairReduce::kMax ? -1.0 : 0.0; };
  std::vector<Kept> others;
  for (int64_t k = 0; k < in.count(); ++k) others.emplace_back(in.of_rows(k) ? 0 : groups * call.other, none, empty_count(k));
  const auto finish = [&](int64_t k, T top, double sum, double count, int64_t i) {
    T* value = found[2 * k].template mutable_data_ptr<T>();
    if (in.reduce(k) == PairReduce::kMax) value[i] = top;
    else if (in.reduce(k) == PairReduce::kSum) value[i] = static_cast<T>(sum);
    else value[i] = count == 0 || top == none ? none : static_cast<T>(static_cast<double>(top) + std::log(sum));
    found[2 * k + 1].template mutable_data_ptr<T>()[i] = static_cast<T>(count);
  };
  each_item(groups, [&](int64_t begin, int64_t end) {
    const Products products;
    Scores<T> products_of(in.scored_a, in.scored_b);
    std::vector<T> scores(kOther * kPairLanes);
    for (int64_t group = begin; group < end; ++group) {
      for (int64_t block = group * blocks / groups; block < (group + 1) * blocks / groups; ++block) {
        PairTile tile{scores.data(), kPairLanes, block * kPairLanes, std::min(kPairLanes, call.own - block * kPairLanes), 0, 0, false};
        products_of.pack(tile);
        std::vector<Kept> own;
        std::array<PairSums, kMaxPairTerms> sums;
        for (int64_t k = 0; k < in.count(); ++k) {
          own.emplace_back(kPairLanes, none, empty_count(k));
          Kept& kept = in.of_rows(k) ? own[k] : others[k];
          const int64_t from = in.of_rows(k) ? 0 : group * call.other;
          sums[k] = {kept.top.data() + from, kept.sum.data() + from, kept.count.data() + from};
        }
        for (; tile.other_begin < call.other; tile.other_begin += kOther) {
          tile.other_count = std::min(kOther, call.other - tile.other_begin);
          if (T* to = kept_tile<T>(scores_kept, tile)) tile.scores = to;
          products_of.multiply_tile(tile);
          kernels->pair_forward(call, scalar, tile, sums.data());
        }
        for (int64_t k = 0; k < in.count(); ++k) {
          for (int64_t i = 0; in.of_rows(k) && i < tile.own_count; ++i) {
            finish(k, own[k].top[i], own[k].sum[i], own[k].count[i], tile.own_begin + i);
          }
        }
      }
    }
  });
  for (int64_t k = 0; k < in.count(); ++k) {
    if (in.of_rows(k)) continue;
    const Kept& kept = others[k];
    each_piece(call.other, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        T top = none;
        double sum = 0, count = empty_count(k);
        for (int64_t at = j; at < groups * call.other; at += call.other) {
          if (kept.top[at] > top || std::isnan(kept.top[at])) {
            sum *= top == none ? 0.0 : std::exp(static_cast<double>(top) - static_cast<double>(kept.top[at]));
            top = kept.top[at];
            if (in.reduce(k) == PairReduce::kMax) count = kept.count[at];
          }
          if (in.reduce(k) == PairReduce::kSum) sum += kept.sum[at];
          else if (kept.top[at] != none) sum += kept.sum[at] * std::exp(static_cast<double>(kept.top[at]) - static_cast<double>(top));
          if (in.reduce(k) != PairReduce::kMax) count += kept.count[at];
        }
        finish(k, top, sum, count, j);
      }
    });
  }
}

std::vector<Tensor> pair_forward(const Tensor& a, const OptionalTensor& b, const OptionalTensor& row_bias,
                                 const OptionalTensor& column_bias, const OptionalTensor& row_label, const OptionalTensor& column_label,
                                 const OptionalTensor& codes, const c10::List<OptionalTensor>& params, std::optional<int64_t> skip,
                                 double scale, int64_t transform, double cap, at::ArrayRef<int64_t> terms,
                                 at::ArrayRef<double> constants, int64_t keep) {
  const Inputs in =
      describe(a, b, row_bias, column_bias, row_label, column_label, codes, params, skip, scale, transform, cap, terms, constants, true);
  std::vector<Tensor> found;
  for (int64_t k = 0; k < in.count(); ++k) {
    const int64_t size = (in.of_rows(k) ? in.scored_a : in.scored_b).size(0);
    for (int i = 0; i < 2; ++i) found.push_back(at::empty({size}, a.options().dtype(in.type)));
  }
  Tensor kept;
  TORCH_CHECK(keep >= 0, "pair engine: scores cannot be kept in ", keep, " bytes");
  if (keep) {
    const int64_t columns = in.scored_b.size(0), blocks = (in.scored_a.size(0) + kPairLanes - 1) / kPairLanes;
    const int64_t block = std::max<int64_t>(1, columns * kPairLanes * static_cast<int64_t>(at::elementSize(in.type)));
    kept = at::empty({std::min(blocks, keep / block), columns, kPairLanes}, a.options().dtype(in.type));
    advise_huge_pages(kept);
  }
  AT_DISPATCH_FLOATING_TYPES(in.type, "pair_forward", [&] { forward<scalar_t>(in, found, kept); });
  if (keep) found.push_back(kept);
  return found;
}

// What a backward call for the own rows writes; undefined where not wanted.
struct Wanted {
  Tensor own, own_bias;
  std::vector<Tensor> own_param;  // of each term of the call
  Tensor other, other_bias;       // by strips of own rows
};

// Gradients of the own rows and what belongs to them and, in strips of own rows that fit in the budget, of the other set; of scores G,
// which products with rows take: T, or bfloat16 if those of `in` are.
template <class T, class G>
void backward(const PairCall& call, const Inputs& in, bool own_is_row, Wanted& wanted, int64_t budget, const Tensor& scores_kept) {
  constexpr bool kRounds = !std::is_same_v<T, G>;
  const Scalar scalar = std::is_same_v<T, double> ? Scalar::kDouble : Scalar::kFloat;
  const G* a = (own_is_row ? in.a : in.b).template const_data_ptr<G>();
  const G* b = (own_is_row ? in.b : in.a).template const_data_ptr<G>();
  const int64_t features = call.features;
  const bool want_other = wanted.other.defined() || wanted.other_bias.defined();
  const int64_t row_bytes = std::max<int64_t>(1, call.other * static_cast<int64_t>(sizeof(G)));
  const int64_t all = (call.own + kPairLanes - 1) / kPairLanes;
  const int64_t fit = std::max<int64_t>(1, budget / (row_bytes * kPairLanes)), strips = (all + fit - 1) / fit;
  const int64_t strip = want_other && strips ? (all + strips - 1) / strips : all;  // blocks, of even strips
  const Tensor kept = want_other ? at::empty({call.other, strip * kPairLanes}, (own_is_row ? in.a : in.b).options()) : Tensor();
  if (want_other) advise_huge_pages(kept);
  G* const products = want_other ? kept.template mutable_data_ptr<G>() : nullptr;
  // part (count, features) = gradients (count, k) times rows
  const auto multiply_rows = [&](int64_t count, int64_t k, const G* gradients, int64_t stride, const G* rows, T* part) {
    if constexpr (kRounds) multiply_pairs(count, features, k, gradients, stride, rows, features, part, features);
    else multiply<T>(count, features, k, gradients, stride, rows, features, part, features);
  };
  std::vector<double> other_bias(wanted.other_bias.defined() ? call.other : 0, 0.0);
  for (int64_t first = 0; first < all; first += strip) {
    const int64_t last = std::min(all, first + strip);
    each_item(last - first, [&](int64_t begin, int64_t end) {
      const Products guard;
      Scores<T> products_of(own_is_row ? in.scored_a : in.scored_b, own_is_row ? in.scored_b : in.scored_a);
      const bool in_strip = want_other && !kRounds;  // scores become gradients where products of the other set take them from
      std::vector<T> scores(in_strip ? 0 : kOther * kPairLanes), gradient(kOther * kPairLanes);
      std::vector<T> turned(kOther * kPairLanes), part(wanted.own.defined() ? features * kPairLanes : 0);
      std::vector<G> rounded(kRounds ? kOther * kPairLanes : 0);
      for (int64_t block = first + begin; block < first + end; ++block) {
        PairTile tile{scores.data(), kPairLanes, block * kPairLanes, std::min(kPairLanes, call.own - block * kPairLanes), 0, 0, false};
        tile.finished = kept_tile<T>(scores_kept, tile) != nullptr;
        if (!tile.finished) products_of.pack(tile);
        std::array<std::array<double, kPairLanes>, 2 * kMaxPairTerms + 1> sums{};
        PairGradients gradients{wanted.own_bias.defined() ? sums[0].data() : nullptr, {}};
        for (int k = 0; k < call.terms; ++k) gradients.own_param[k] = wanted.own_param[k].defined() ? sums[k + 1].data() : nullptr;
        T* own = wanted.own.defined() ? wanted.own.mutable_data_ptr<T>() + tile.own_begin * features : nullptr;
        for (; tile.other_begin < call.other; tile.other_begin += kOther) {
          tile.other_count = std::min(kOther, call.other - tile.other_begin);
          G* const of_strip = want_other ? products + tile.other_begin * strip * kPairLanes + (block - first) * kPairLanes : nullptr;
          if (in_strip) {
            tile.stride = strip * kPairLanes;
            tile.scores = of_strip;
          }
          T* scored = static_cast<T*>(tile.scores);
          if (const T* from = kept_tile<T>(scores_kept, tile)) {
            for (int64_t j = 0; j < tile.other_count; ++j) std::copy_n(from + j * kPairLanes, kPairLanes, scored + j * tile.stride);
          } else {
            products_of.multiply_tile(tile);
          }
          kernels->pair_backward(call, scalar, tile, gradient.data(), gradients);
          if constexpr (kRounds) {
            if (want_other) kernels->pair_round(scored, tile.other_count, kPairLanes, tile.own_count, of_strip, strip * kPairLanes);
          }
          if (!own) continue;
          kernels->pair_turn(scalar, scored, tile.other_count, kPairLanes, tile.stride, turned.data(), kOther);
          const G* taken;
          if constexpr (kRounds) {
            kernels->pair_round(turned.data(), tile.own_count, kOther, tile.other_count, rounded.data(), kOther);
            taken = rounded.data();
          } else {
            taken = turned.data();
          }
          multiply_rows(tile.own_count, tile.other_count, taken, kOther, b + tile.other_begin * features, part.data());
          kernels->pair_add(scalar, part.data(), tile.own_count * features, call.scale, own);
        }
        const auto write = [&](const Tensor& to, const std::array<double, kPairLanes>& from) {
          if (!to.defined()) return;
          T* at = to.mutable_data_ptr<T>() + tile.own_begin;
          for (int64_t i = 0; i < tile.own_count; ++i) at[i] += static_cast<T>(from[i]);
        };
        write(wanted.own_bias, sums[0]);
        for (int k = 0; k < call.terms; ++k) write(wanted.own_param[k], sums[k + 1]);
      }
    });
    if (!want_other) continue;
    const int64_t rows = std::min(call.own, last * kPairLanes) - first * kPairLanes, stride = strip * kPairLanes;
    each_item((call.other + kPairLanes - 1) / kPairLanes, [&](int64_t begin, int64_t end) {
      const Products guard;
      std::vector<T> part(wanted.other.defined() ? features * kPairLanes : 0);
      for (int64_t j = begin * kPairLanes; j < std::min(call.other, end * kPairLanes); j += kPairLanes) {
        const int64_t count = std::min(kPairLanes, call.other - j);
        const G* by = products + j * stride;
        for (int64_t i = 0; wanted.other.defined() && i < rows; i += kOther) {
          multiply_rows(count, std::min(kOther, rows - i), by + i, stride, a + (first * kPairLanes + i) * features, part.data());
          kernels->pair_add(scalar, part.data(), count * features, call.scale, wanted.other.mutable_data_ptr<T>() + j * features);
        }
        for (int64_t k = 0; wanted.other_bias.defined() && k < count; ++k) {
          for (int64_t i = 0; i < rows; ++i) other_bias[j + k] += static_cast<double>(by[k * stride + i]);
        }
      }
    });
  }
  for (size_t j = 0; j < other_bias.size(); ++j) wanted.other_bias.mutable_data_ptr<T>()[j] = static_cast<T>(other_bias[j]);
}

std::vector<Tensor> pair_backward(const c10::List<OptionalTensor>& grads, const std::vector<Tensor>& statistics, const Tensor& a,
                                  const OptionalTensor& b, const OptionalTensor& row_bias, const OptionalTensor& column_bias,
                                  const OptionalTensor& row_label, const OptionalTensor& column_label, const OptionalTensor& codes,
                                  const c10::List<OptionalTensor>& params, std::optional<int64_t> skip, double scale, int64_t transform,
                                  double cap, at::ArrayRef<int64_t> terms, at::ArrayRef<double> constants, const c10::List<bool>& want,
                                  int64_t memory_budget, const OptionalTensor& kept) {
  const Inputs in =
      describe(a, b, row_bias, column_bias, row_label, column_label, codes, params, skip, scale, transform, cap, terms, constants, false);
  const int64_t count = in.count();
  TORCH_CHECK(static_cast<int64_t>(grads.size()) == count && static_cast<int64_t>(statistics.size()) == count &&
                  static_cast<int64_t>(want.size()) == 4 + 2 * count,
              "pair engine: wanted ", count, " gradients and statistics, got ", grads.size(), " and ", statistics.size());
  std::vector<Tensor> upstream(count);
  for (int64_t k = 0; k < count; ++k) {
    const int64_t size = (in.of_rows(k) ? in.scored_a : in.scored_b).size(0);
    if (in.reduce(k) == PairReduce::kMax) continue;
    upstream[k] = checked("an upstream gradient", grads.get(k), in.type, size);
    checked("a statistic", statistics[k], in.type, size);
  }
  TORCH_CHECK(!kept || (kept->dim() == 3 && kept->size(1) == in.scored_b.size(0) && kept->size(2) == kPairLanes && kept->is_contiguous() &&
                        kept->scalar_type() == in.type), "pair engine: kept scores must be contiguous ", in.type, " (blocks, ",
              in.scored_b.size(0), ", ", kPairLanes, "), got ", kept ? kept->sizes() : at::IntArrayRef());
  const auto zeros = [&](bool wanted, const Tensor& like) {
    if (!wanted || !like.defined()) return Tensor();
    const Tensor made = at::empty(like.sizes(), like.options().dtype(in.type));
    advise_huge_pages(made);
    return made.zero_();
  };
  const Tensor by_a = zeros(want[0], in.scored_a), by_b = in.itself ? Tensor() : zeros(want[1], in.scored_b);
  const Tensor by_row_bias = zeros(want[2], in.row_bias), by_column_bias = in.itself ? Tensor() : zeros(want[3], in.column_bias);
  std::vector<Tensor> by_params;
  bool any_column = false;
  for (int64_t k = 0; k < 2 * count; ++k) {
    by_params.push_back(zeros(want[4 + k], in.params[k]));
    any_column |= k % 2 == 1 && by_params[k].defined();
  }
  // One sweep for the own rows: with the terms in the role of rows or columns, of a set compared with itself in both.
  const auto sweep = [&](bool own_is_row, Wanted& wanted) {
    PairCall call = make_call(in, own_is_row);
    for (int64_t k = 0; k < count; ++k) {
      if (!upstream[k].defined()) continue;
      for (const bool as_row : {true, false}) {
        if (!in.itself && as_row != own_is_row) continue;
        PairTerm& term = add_term(call, in, k, in.of_rows(k) == as_row, as_row);
        term.value = statistics[k].const_data_ptr();
        term.grad = upstream[k].const_data_ptr();
        wanted.own_param.push_back(by_params[2 * k + !as_row]);
      }
    }
    const Tensor scores = own_is_row ? kept.value_or(Tensor()) : Tensor();
    if (in.rounds) return backward<float, at::BFloat16>(call, in, own_is_row, wanted, memory_budget, scores);
    AT_DISPATCH_FLOATING_TYPES(in.type, "pair_backward", [&] {
      backward<scalar_t, scalar_t>(call, in, own_is_row, wanted, memory_budget, scores);
    });
  };
  // A column's parameter has a gradient of its own sweep; that of the columns alone needs no strips.
  Wanted rows{by_a, by_row_bias, {}, by_b, by_column_bias};
  sweep(true, rows);
  if (!in.itself && any_column) {
    Wanted columns{};
    sweep(false, columns);
  }
  std::vector<Tensor> found = {by_a, by_b, by_row_bias, by_column_bias};
  found.insert(found.end(), by_params.begin(), by_params.end());
  for (size_t k = 0; k < found.size(); ++k) {
    if (!found[k].defined()) found[k] = at::empty({0}, a.options());
    else if (k < 2 && a.scalar_type() != in.type) found[k] = copied(found[k], a.scalar_type());
  }
  return found;
}

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) {
  m.impl("pair_forward.cpu", fastloss::pair_forward);
  m.impl("pair_backward.cpu", fastloss::pair_backward);
}
