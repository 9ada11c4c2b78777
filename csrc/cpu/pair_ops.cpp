// The pair engine's ops: products of tiles, threads, and what is kept between tiles, around one instruction set's kernels.
//
// A block is kPairLanes own rows. Its products with kOther rows of the other set at a time are a tile that stays in cache. Products, and
// sums of products, are made of pieces of fixed size, so that results do not depend on the threads.

#include "pair_inputs.h"

#include <torch/library.h>

#include <array>

namespace fastloss {
namespace {

constexpr int64_t kOther = 256;     // rows of the other set in a tile
constexpr int64_t kTogether = 4;    // blocks that go over the other set together, whose rows would come from memory for each otherwise
constexpr int64_t kMaxGroups = 32;  // of blocks, each of which keeps its own statistics of all rows of the other set

// run(begin, end) over items, each worth a thread.
template <class Run>
void each_item(int64_t items, const Run& run) {
  if (items <= 1) run(0, items);
  else at::parallel_for(0, items, 1, run);
}

// Numbers of T, whatever they are, from the beginning of a cache line on, as products want them: a vector across two lines costs two.
template <class T>
Tensor buffer(int64_t size) {
  const Tensor made = at::empty({size}, at::TensorOptions().dtype(c10::CppTypeToScalarType<T>::value));
  advise_huge_pages(made);
  return made;
}

// Products of blocks of own rows and tiles of other ones, in T; rows are of T, or bfloat16.
template <class T>
class Scores {
 public:
  Scores(const Tensor& own, const Tensor& other)
      : own_(own), other_(other), narrow_(own.scalar_type() != c10::CppTypeToScalarType<T>::value), features_(own.size(1)) {}

  // The rows of a block as columns, 0 behind the last, in one of kTogether places. A pair of 16-bit numbers moves as one of 32 bits, as
  // their products want it.
  void pack(const PairTile& tile, size_t place) {
    while (place >= packed_.size()) packed_.push_back(buffer<T>(features_ * kPairLanes));
    T* to = packed_[place].template mutable_data_ptr<T>();
    const int64_t columns = narrow_ ? features_ / 2 : features_;
    if (tile.own_count < kPairLanes) std::fill_n(to, features_ * kPairLanes, T(0));
    kernels->pair_turn(narrow_ ? Scalar::kFloat : scalar_of(own_), at(own_, tile.own_begin), tile.own_count, columns, columns, to,
                       kPairLanes);
  }

  // The tile's scores, before they are scaled, of the block in a place.
  void multiply_tile(const PairTile& tile, size_t place) {
    const void* others = at(other_, tile.other_begin);
    T *to = static_cast<T*>(tile.scores), *packed = packed_[place].template mutable_data_ptr<T>();
    if constexpr (std::is_same_v<T, float>) {
      if (narrow_) {
        return multiply_pairs(tile.other_count, kPairLanes, features_, static_cast<const at::BFloat16*>(others), features_,
                              reinterpret_cast<const at::BFloat16*>(packed), kPairLanes, to, tile.stride);
      }
    }
    multiply<T>(tile.other_count, kPairLanes, features_, static_cast<const T*>(others), features_, packed, kPairLanes, to, tile.stride);
  }

 private:
  const void* at(const Tensor& rows, int64_t row) const {
    return static_cast<const char*>(rows.const_data_ptr()) + row * features_ * rows.element_size();
  }

  const Tensor &own_, &other_;
  bool narrow_;
  int64_t features_;
  std::vector<Tensor> packed_;
};

// visit(first, last) of blocks that go together, in order.
template <class Visit>
void each_together(int64_t begin, int64_t end, const Visit& visit) {
  for (; begin < end; begin += kTogether) visit(begin, std::min(end, begin + kTogether));
}

// Where the scores of a tile are kept in (blocks, rows of the other set, kPairLanes) of the first blocks; null of another one.
template <class T>
T* kept_tile(const Tensor& kept, const PairTile& tile) {
  const int64_t block = tile.own_begin / kPairLanes;
  if (!kept.defined() || block >= kept.size(0)) return nullptr;
  return static_cast<T*>(kept.data_ptr()) + (block * kept.size(1) + tile.other_begin) * kPairLanes;
}

// What is kept of a term: of the rows of a block, or of all rows of the other set for each group of blocks.
template <class T>
struct Kept {
  std::vector<T> top;
  std::vector<double> sum, count;
  Kept(int64_t size, double empty) : top(size, -std::numeric_limits<T>::infinity()), sum(size, 0.0), count(size, empty) {}
};

double empty_count(const Inputs& in, int64_t term) { return in.reduce(term) == PairReduce::kMax ? -1.0 : 0.0; }

// Writes value and count of a term at row i of its side.
template <class T>
void finish(const Inputs& in, std::vector<Tensor>& found, int64_t term, T top, double sum, double count, int64_t i) {
  T* value = found[2 * term].template mutable_data_ptr<T>();
  const T none = -std::numeric_limits<T>::infinity();
  if (in.reduce(term) == PairReduce::kMax) value[i] = top;
  else if (in.reduce(term) == PairReduce::kSum) value[i] = static_cast<T>(sum);
  else value[i] = count == 0 || top == none ? none : static_cast<T>(static_cast<double>(top) + std::log(sum));
  found[2 * term + 1].template mutable_data_ptr<T>()[i] = static_cast<T>(count);
}

// The call of a forward sweep: all terms, for the rows.
PairCall forward_call(const Inputs& in) {
  PairCall call = make_call(in, true);
  for (int64_t k = 0; k < in.count(); ++k) add_term(call, in, k, in.of_rows(k), true);
  return call;
}

PairTile tile_of(const PairCall& call, int64_t block) {
  return {nullptr, kPairLanes, block * kPairLanes, std::min(kPairLanes, call.own - block * kPairLanes), 0, 0, false};
}

// The statistics of blocks of rows, whose tiles of scores stay where place(tile) has put them, and what they add to those of the rows of
// the other set, which are kept from `from` on.
template <class T, class Place>
void gather_blocks(const Inputs& in, const PairCall& call, Scores<T>& products_of, int64_t first, int64_t last,
                   std::vector<Kept<T>>& others, int64_t from, std::vector<Tensor>& found, const Place& place) {
  const Scalar scalar = std::is_same_v<T, double> ? Scalar::kDouble : Scalar::kFloat;
  std::vector<PairTile> tiles;
  std::vector<std::vector<Kept<T>>> own(last - first);
  std::array<std::array<PairSums, kMaxPairTerms>, kTogether> sums;
  for (int64_t block = first; block < last; ++block) {
    const int64_t i = block - first;
    tiles.push_back(tile_of(call, block));
    products_of.pack(tiles[i], i);
    for (int64_t k = 0; k < in.count(); ++k) {
      own[i].emplace_back(in.of_rows(k) ? kPairLanes : 0, empty_count(in, k));
      Kept<T>& kept = in.of_rows(k) ? own[i][k] : others[k];
      const int64_t begin = in.of_rows(k) ? 0 : from;
      sums[i][k] = {kept.top.data() + begin, kept.sum.data() + begin, kept.count.data() + begin};
    }
  }
  for (int64_t other = 0; other < call.other; other += kOther) {
    for (size_t i = 0; i < tiles.size(); ++i) {
      tiles[i].other_begin = other;
      tiles[i].other_count = std::min(kOther, call.other - other);
      place(tiles[i]);
      products_of.multiply_tile(tiles[i], i);
      kernels->pair_forward(call, scalar, tiles[i], sums[i].data());
    }
  }
  for (size_t i = 0; i < tiles.size(); ++i) {
    for (int64_t k = 0; k < in.count(); ++k) {
      for (int64_t row = 0; in.of_rows(k) && row < tiles[i].own_count; ++row) {
        finish(in, found, k, own[i][k].top[row], own[i][k].sum[row], own[i][k].count[row], tiles[i].own_begin + row);
      }
    }
  }
}

template <class T>
void forward(const Inputs& in, std::vector<Tensor>& found, const Tensor& scores_kept) {
  const PairCall call = forward_call(in);
  bool any_other = false;
  for (int64_t k = 0; k < in.count(); ++k) any_other |= !in.of_rows(k);
  const int64_t blocks = (call.own + kPairLanes - 1) / kPairLanes, groups = any_other ? std::min(blocks, kMaxGroups) : blocks;
  const T none = -std::numeric_limits<T>::infinity();
  std::vector<Kept<T>> others;
  for (int64_t k = 0; k < in.count(); ++k) others.emplace_back(in.of_rows(k) ? 0 : groups * call.other, empty_count(in, k));
  each_item(groups, [&](int64_t begin, int64_t end) {
    const Products products;
    Scores<T> products_of(in.scored_a, in.scored_b);
    const Tensor scores = buffer<T>(kOther * kPairLanes);
    const auto place = [&](PairTile& tile) {
      T* const to = kept_tile<T>(scores_kept, tile);
      tile.scores = to ? to : scores.mutable_data_ptr<T>();
    };
    for (int64_t group = begin, next; group < end; group = next) {
      next = any_other ? group + 1 : end;
      each_together(group * blocks / groups, next * blocks / groups, [&](int64_t first, int64_t last) {
        gather_blocks(in, call, products_of, first, last, others, group * call.other, found, place);
      });
    }
  });
  for (int64_t k = 0; k < in.count(); ++k) {
    if (in.of_rows(k)) continue;
    const Kept<T>& kept = others[k];
    each_piece(call.other, [&](int64_t begin, int64_t end) {
      for (int64_t j = begin; j < end; ++j) {
        T top = none;
        double sum = 0, count = empty_count(in, k);
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
        finish(in, found, k, top, sum, count, j);
      }
    });
  }
}

// The uninitialised statistics of every term.
std::vector<Tensor> make_statistics(const Inputs& in, const Tensor& like) {
  std::vector<Tensor> found;
  for (int64_t k = 0; k < in.count(); ++k) {
    const int64_t size = (in.of_rows(k) ? in.scored_a : in.scored_b).size(0);
    for (int i = 0; i < 2; ++i) found.push_back(at::empty({size}, like.options().dtype(in.type)));
  }
  return found;
}

std::vector<Tensor> pair_forward(const Tensor& a, const OptionalTensor& b, const OptionalTensor& row_bias,
                                 const OptionalTensor& column_bias, const OptionalTensor& row_label, const OptionalTensor& column_label,
                                 const OptionalTensor& codes, const c10::List<OptionalTensor>& params, std::optional<int64_t> skip,
                                 double scale, int64_t transform, double cap, at::ArrayRef<int64_t> terms,
                                 at::ArrayRef<double> constants, int64_t keep) {
  const Inputs in =
      describe(a, b, row_bias, column_bias, row_label, column_label, codes, params, skip, scale, transform, cap, terms, constants, true);
  std::vector<Tensor> found = make_statistics(in, a);
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

// Gradients of the own rows and what belongs to them and, in strips of own rows that fit in the budget, of the other set, both sets' before
// they are scaled; of scores G, which products with rows take: T, or bfloat16 if those of `in` are. Scores are those that were kept, or
// computed again; or for the first time where the call's `statistics` are to be found too, all of rows: then as many blocks are at work as
// the budget has room for the scores of, where these do not lie in the strip. At least kTogether blocks are in a strip, and at work.
template <class T, class G>
void backward(const PairCall& call, const Inputs& in, bool own_is_row, Wanted& wanted, int64_t budget, const Tensor& scores_kept,
              std::vector<Tensor>* statistics) {
  constexpr bool kRounds = !std::is_same_v<T, G>;
  const Scalar scalar = std::is_same_v<T, double> ? Scalar::kDouble : Scalar::kFloat;
  const G* a = (own_is_row ? in.a : in.b).template const_data_ptr<G>();
  const G* b = (own_is_row ? in.b : in.a).template const_data_ptr<G>();
  const int64_t features = call.features;
  const bool want_other = wanted.other.defined() || wanted.other_bias.defined();
  const bool in_strip = want_other && !kRounds;  // scores become gradients where products of the other set take them from
  const auto fitting = [&](size_t size) {  // blocks whose scores, or their gradients, of that size the budget has room for
    return std::max(kTogether, budget / std::max<int64_t>(1, call.other * static_cast<int64_t>(size) * kPairLanes));
  };
  const int64_t all = (call.own + kPairLanes - 1) / kPairLanes;
  const int64_t fit = fitting(sizeof(G)), strips = (all + fit - 1) / fit;
  const int64_t strip = want_other && strips ? (all + strips - 1) / strips : all;  // blocks, of even strips
  const bool buffers = statistics && !in_strip;
  const int64_t at_work = buffers ? std::min(all, fitting(sizeof(T))) : all;
  const Tensor working = buffer<T>(buffers ? at_work * call.other * kPairLanes : 0);
  const Tensor kept = want_other ? at::empty({call.other, strip * kPairLanes}, (own_is_row ? in.a : in.b).options()) : Tensor();
  if (want_other) advise_huge_pages(kept);
  G* const products = want_other ? kept.template mutable_data_ptr<G>() : nullptr;
  const PairCall scoring = statistics ? forward_call(in) : call;
  // to (count, features) += gradients (count, k) times rows
  const auto add_rows = [&](int64_t count, int64_t k, const G* gradients, int64_t stride, const G* rows, T* to) {
    if constexpr (kRounds) multiply_pairs(count, features, k, gradients, stride, rows, features, to, features, true);
    else multiply<T>(count, features, k, gradients, stride, rows, features, to, features, true);
  };
  std::vector<double> other_bias(wanted.other_bias.defined() ? call.other : 0, 0.0);
  for (int64_t first = 0; first < all; first += strip) {
    const int64_t last = std::min(all, first + strip);
    const auto run = [&](int64_t part, int64_t begin, int64_t end) {
      const Products guard;
      Scores<T> products_of(own_is_row ? in.scored_a : in.scored_b, own_is_row ? in.scored_b : in.scored_a);
      const Tensor scores = buffer<T>(in_strip || buffers ? 0 : kOther * kPairLanes);
      const Tensor gradient = buffer<T>(kOther * kPairLanes), turned = buffer<T>(kOther * kPairLanes);
      const Tensor rounded = buffer<G>(kRounds ? kOther * kPairLanes : 0);
      std::vector<Kept<T>> no_others(in.count(), Kept<T>(0, 0));
      const auto of_strip = [&](const PairTile& tile) {
        return products + tile.other_begin * strip * kPairLanes + (tile.own_begin - first * kPairLanes);
      };
      const auto place = [&](PairTile& tile) {
        tile.stride = in_strip ? strip * kPairLanes : kPairLanes;
        if constexpr (!kRounds) tile.scores = in_strip ? of_strip(tile) : nullptr;
        if (in_strip) return;
        const int64_t row = (tile.own_begin / kPairLanes - part) * call.other + tile.other_begin;
        tile.scores = buffers ? working.mutable_data_ptr<T>() + row * kPairLanes : scores.mutable_data_ptr<T>();
      };
      each_together(begin, end, [&](int64_t from, int64_t to) {
        if (statistics) gather_blocks(in, scoring, products_of, from, to, no_others, 0, *statistics, place);
        std::vector<PairTile> tiles;
        std::array<std::array<std::array<double, kPairLanes>, 2 * kMaxPairTerms + 1>, kTogether> sums{};
        std::array<PairGradients, kTogether> gradients;
        for (int64_t block = from; block < to; ++block) {
          const int64_t i = block - from;
          tiles.push_back(tile_of(call, block));
          tiles[i].finished = statistics || kept_tile<T>(scores_kept, tiles[i]);
          if (!tiles[i].finished) products_of.pack(tiles[i], i);
          gradients[i].own_bias = wanted.own_bias.defined() ? sums[i][0].data() : nullptr;
          for (int k = 0; k < call.terms; ++k) gradients[i].own_param[k] = wanted.own_param[k].defined() ? sums[i][k + 1].data() : nullptr;
        }
        for (int64_t other = 0; other < call.other; other += kOther) {
          for (size_t i = 0; i < tiles.size(); ++i) {
            PairTile& tile = tiles[i];
            tile.other_begin = other;
            tile.other_count = std::min(kOther, call.other - other);
            place(tile);
            T* scored = static_cast<T*>(tile.scores);
            if (const T* kept_at = kept_tile<T>(scores_kept, tile)) {
              for (int64_t j = 0; j < tile.other_count; ++j) std::copy_n(kept_at + j * kPairLanes, kPairLanes, scored + j * tile.stride);
            } else if (!statistics) {
              products_of.multiply_tile(tile, i);
            }
            kernels->pair_backward(call, scalar, tile, gradient.mutable_data_ptr<T>(), gradients[i]);
            if constexpr (kRounds) {
              if (want_other) kernels->pair_round(scored, tile.other_count, kPairLanes, tile.own_count, of_strip(tile), strip * kPairLanes);
            }
            if (!wanted.own.defined()) continue;
            T* const columns = turned.mutable_data_ptr<T>();
            kernels->pair_turn(scalar, scored, tile.other_count, kPairLanes, tile.stride, columns, kOther);
            if constexpr (kRounds) {
              kernels->pair_round(columns, tile.own_count, kOther, tile.other_count, rounded.mutable_data_ptr<G>(), kOther);
            }
            const G* taken = (kRounds ? rounded : turned).template const_data_ptr<G>();
            add_rows(tile.own_count, tile.other_count, taken, kOther, b + other * features,
                     wanted.own.mutable_data_ptr<T>() + tile.own_begin * features);
          }
        }
        for (size_t i = 0; i < tiles.size(); ++i) {
          const auto write = [&](const Tensor& to, const std::array<double, kPairLanes>& from) {
            if (!to.defined()) return;
            T* at = to.mutable_data_ptr<T>() + tiles[i].own_begin;
            for (int64_t row = 0; row < tiles[i].own_count; ++row) at[row] += static_cast<T>(from[row]);
          };
          write(wanted.own_bias, sums[i][0]);
          for (int k = 0; k < call.terms; ++k) write(wanted.own_param[k], sums[i][k + 1]);
        }
      });
    };
    for (int64_t part = first; part < last; part += at_work) {
      each_item(std::min(at_work, last - part), [&](int64_t begin, int64_t end) { run(part, part + begin, part + end); });
    }
    if (!want_other) continue;
    const int64_t rows = std::min(call.own, last * kPairLanes) - first * kPairLanes, stride = strip * kPairLanes;
    each_item((call.other + kPairLanes - 1) / kPairLanes, [&](int64_t begin, int64_t end) {
      const Products guard;
      for (int64_t j = begin * kPairLanes; j < std::min(call.other, end * kPairLanes); j += kPairLanes) {
        const int64_t count = std::min(kPairLanes, call.other - j);
        const G* by = products + j * stride;
        for (int64_t i = 0; wanted.other.defined() && i < rows; i += kOther) {
          add_rows(count, std::min(kOther, rows - i), by + i, stride, a + (first * kPairLanes + i) * features,
                   wanted.other.mutable_data_ptr<T>() + j * features);
        }
        for (int64_t k = 0; wanted.other_bias.defined() && k < count; ++k) {
          for (int64_t i = 0; i < rows; ++i) other_bias[j + k] += static_cast<double>(by[k * stride + i]);
        }
      }
    });
  }
  for (size_t j = 0; j < other_bias.size(); ++j) wanted.other_bias.mutable_data_ptr<T>()[j] = static_cast<T>(other_bias[j]);
}

// What each term is given, of its side's size: get(term) of a list of this length. Undefined of a maximum, and where nothing is given.
template <class Get>
std::vector<Tensor> of_terms(const Inputs& in, const char* name, size_t length, const Get& get) {
  TORCH_CHECK(static_cast<int64_t>(length) == in.count(), "pair engine: wanted ", name, " of each of ", in.count(), " terms, got ", length);
  std::vector<Tensor> found;
  for (int64_t k = 0; k < in.count(); ++k) {
    const int64_t size = (in.of_rows(k) ? in.scored_a : in.scored_b).size(0);
    found.push_back(in.reduce(k) == PairReduce::kMax ? Tensor() : checked(name, get(k), in.type, size));
  }
  return found;
}

// Gradients by both sets, both biases and the terms' parameters, of the accumulation type, undefined where not wanted; from upstream
// gradients of the terms and their statistics, which are found first where no scores are `kept` and that is asked for.
std::vector<Tensor> differentiate(const Inputs& in, const std::vector<Tensor>& upstream, const std::vector<Tensor>& statistics,
                                  const c10::List<bool>& want, int64_t memory_budget, const Tensor& kept, std::vector<Tensor>* find) {
  const int64_t count = in.count();
  TORCH_CHECK(static_cast<int64_t>(want.size()) == 4 + 2 * count, "pair engine: wanted ", 4 + 2 * count, " flags, got ", want.size());
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
    const Tensor scores = own_is_row ? kept : Tensor();
    if (in.rounds) return backward<float, at::BFloat16>(call, in, own_is_row, wanted, memory_budget, scores, own_is_row ? find : nullptr);
    AT_DISPATCH_FLOATING_TYPES(in.type, "pair_backward", [&] {
      backward<scalar_t, scalar_t>(call, in, own_is_row, wanted, memory_budget, scores, own_is_row ? find : nullptr);
    });
  };
  // A column's parameter has a gradient of its own sweep; that of the columns alone needs no strips.
  Wanted rows{by_a, by_row_bias, {}, by_b, by_column_bias};
  sweep(true, rows);
  if (!in.itself && any_column) {
    Wanted columns{};
    sweep(false, columns);
  }
  for (const Tensor& by : {by_a, by_b}) {
    if (by.defined() && in.scale != 1) by.mul_(in.scale);
  }
  std::vector<Tensor> found = {by_a, by_b, by_row_bias, by_column_bias};
  found.insert(found.end(), by_params.begin(), by_params.end());
  return found;
}

std::vector<Tensor> pair_backward(const c10::List<OptionalTensor>& grads, const std::vector<Tensor>& statistics, const Tensor& a,
                                  const OptionalTensor& b, const OptionalTensor& row_bias, const OptionalTensor& column_bias,
                                  const OptionalTensor& row_label, const OptionalTensor& column_label, const OptionalTensor& codes,
                                  const c10::List<OptionalTensor>& params, std::optional<int64_t> skip, double scale, int64_t transform,
                                  double cap, at::ArrayRef<int64_t> terms, at::ArrayRef<double> constants, const c10::List<bool>& want,
                                  int64_t memory_budget, const OptionalTensor& kept) {
  const Inputs in =
      describe(a, b, row_bias, column_bias, row_label, column_label, codes, params, skip, scale, transform, cap, terms, constants, false);
  TORCH_CHECK(!kept || (kept->dim() == 3 && kept->size(1) == in.scored_b.size(0) && kept->size(2) == kPairLanes && kept->is_contiguous() &&
                        kept->scalar_type() == in.type), "pair engine: kept scores must be contiguous ", in.type, " (blocks, ",
              in.scored_b.size(0), ", ", kPairLanes, "), got ", kept ? kept->sizes() : at::IntArrayRef());
  const auto upstream = of_terms(in, "an upstream gradient", grads.size(), [&](int64_t k) { return grads.get(k); });
  const auto values = of_terms(in, "a statistic", statistics.size(), [&](int64_t k) { return OptionalTensor(statistics[k]); });
  std::vector<Tensor> found = differentiate(in, upstream, values, want, memory_budget, kept.value_or(Tensor()), nullptr);
  for (size_t k = 0; k < found.size(); ++k) {
    if (!found[k].defined()) found[k] = at::empty({0}, a.options());
    else if (k < 2 && a.scalar_type() != in.type) found[k] = copied(found[k], a.scalar_type());
  }
  return found;
}

// Value and count of every term, and the gradients of the sum of what the rows' statistics are weighted with; of the accumulation type.
std::vector<Tensor> pair_sum(const c10::List<OptionalTensor>& weights, const Tensor& a, const OptionalTensor& b,
                             const OptionalTensor& row_bias, const OptionalTensor& column_bias, const OptionalTensor& row_label,
                             const OptionalTensor& column_label, const OptionalTensor& codes, const c10::List<OptionalTensor>& params,
                             std::optional<int64_t> skip, double scale, int64_t transform, double cap, at::ArrayRef<int64_t> terms,
                             at::ArrayRef<double> constants, const c10::List<bool>& want, int64_t memory_budget) {
  const Inputs in =
      describe(a, b, row_bias, column_bias, row_label, column_label, codes, params, skip, scale, transform, cap, terms, constants, false);
  TORCH_CHECK(!in.itself, "pair engine: the gradient of a set compared with itself needs the statistics of all rows first");
  for (int64_t k = 0; k < in.count(); ++k) {
    TORCH_CHECK(in.of_rows(k) && !(5 + 2 * k < static_cast<int64_t>(want.size()) && want[5 + 2 * k]),
                "pair engine: weighted sums are of rows, and a column's parameter has no gradient of them");
  }
  std::vector<Tensor> found = make_statistics(in, a), values;
  for (int64_t k = 0; k < in.count(); ++k) values.push_back(found[2 * k]);
  const auto upstream = of_terms(in, "a weight", weights.size(), [&](int64_t k) { return weights.get(k); });
  for (Tensor& by : differentiate(in, upstream, values, want, memory_budget, {}, &found)) {
    found.push_back(by.defined() ? by : at::empty({0}, a.options().dtype(in.type)));
  }
  return found;
}

// numbers * factor, of another type: one product in the numbers' own type and one rounding.
Tensor pair_scaled(const Tensor& numbers, const Tensor& factor, at::ScalarType type) {
  TORCH_CHECK(factor.numel() == 1 && factor.scalar_type() == numbers.scalar_type() && numbers.is_contiguous(),
              "pair engine: wanted contiguous numbers and one factor of their type, got ", factor.sizes(), " of ", factor.scalar_type());
  const Tensor found = at::empty(numbers.sizes(), numbers.options().dtype(type));
  advise_huge_pages(found);
  AT_DISPATCH_FLOATING_TYPES(numbers.scalar_type(), "pair_scaled", [&] {
    const scalar_t by = *factor.const_data_ptr<scalar_t>(), *from = numbers.const_data_ptr<scalar_t>();
    AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, type, "pair_scaled", [&, from] {
      using To = scalar_t;
      To* to = found.mutable_data_ptr<To>();
      each_piece(numbers.numel(), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) to[i] = static_cast<To>(from[i] * by);
      });
    });
  });
  return found;
}

}  // namespace
}  // namespace fastloss

TORCH_LIBRARY_IMPL(fastloss, CPU, m) {
  m.impl("pair_forward.cpu", fastloss::pair_forward);
  m.impl("pair_backward.cpu", fastloss::pair_backward);
  m.impl("pair_sum.cpu", fastloss::pair_sum);
  m.impl("pair_scaled.cpu", fastloss::pair_scaled);
}
