// What an op of the pair engine on the CPU is given, checked, and as its kernels take it.
#pragma once

#include "products.h"

namespace fastloss {
namespace {

constexpr int64_t kMaxLabel = 1 << 24;  // places and labels are kept in floats

#define FASTLOSS_COUNT(...) +1
constexpr int kFunctors = 0 FASTLOSS_PAIR(FASTLOSS_COUNT);
#undef FASTLOSS_COUNT

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

}  // namespace
}  // namespace fastloss
