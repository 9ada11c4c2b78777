// A radix sort of a row whose pieces are counted and moved side by side, into the order that one thread would give.
#pragma once

#include "kernels.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <memory>
#include <utility>
#include <vector>

namespace fastloss {

constexpr int64_t kSortPiece = 65536;  // entries; a row has pieces of a size that depends on nothing but its length
constexpr int64_t kMaxPieces = 128;    // each has a table of 2^kDigitBits counts
constexpr int kDigitBits = 11;

// Sorts rows of up to `size` entries one after the other, in memory of its own.
template <class Key, class Tag>
class RadixSort {
 public:
  using Entry = SortEntry<Key, Tag>;

  explicit RadixSort(int64_t size)
      : piece_(std::max(kSortPiece, (size + kMaxPieces - 1) / kMaxPieces)),
        pieces_((size + piece_ - 1) / piece_),
        from_(new Entry[size]),
        to_(new Entry[size]),
        begins_(pieces_),
        ends_(pieces_),
        counts_(pieces_ << kDigitBits) {}

  // fill(begin, end, entries) writes those of elements [begin, end) that matter, at most one each, and gives their SortKeys.
  template <class Fill>
  void fill(int64_t size, const Fill& fill) {
    std::vector<SortKeys> found(pieces_);
    each_piece([&](int64_t p) {
      begins_[p] = std::min(p * piece_, size);
      found[p] = fill(begins_[p], std::min((p + 1) * piece_, size), from_.get() + begins_[p]);
      ends_[p] = begins_[p] + found[p].count;
    });
    count_ = 0;
    uint64_t bits = 0;
    for (const SortKeys& keys : found) {
      count_ += keys.count;
      bits |= keys.bits;
    }
    sort(bits);
  }

  // visit(piece, its first entry, its last + 1) over the sorted row: the largest key first, equal keys as they came.
  template <class Visit>
  void each(const Visit& visit) const {
    each_piece([&](int64_t p) { visit(p, begins_[p], ends_[p]); });
  }

  const Entry* entries() const { return from_.get(); }
  int64_t pieces() const { return pieces_; }

 private:
  template <class Run>
  void each_piece(const Run& run) const {
    at::parallel_for(0, pieces_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) run(p);
    });
  }

  // Least significant digit first. The first pass also closes the gaps between the pieces, so there is one.
  void sort(uint64_t bits) {
    const int width = std::bit_width(bits), passes = std::max(1, (width + kDigitBits - 1) / kDigitBits);
    const int digit = (width + passes - 1) / passes;
    const Key mask = (Key(1) << digit) - 1;
    for (int pass = 0; pass < passes; ++pass) {
      const int shift = pass * digit;
      each_piece([&](int64_t p) {
        Tag* const counts = table(p);
        std::fill_n(counts, int64_t(mask) + 1, Tag(0));
        for (int64_t i = begins_[p]; i < ends_[p]; ++i) ++counts[from_[i].key >> shift & mask];
      });
      Tag place = 0;
      for (int64_t value = mask; value >= 0; --value) {
        for (int64_t p = 0; p < pieces_; ++p) place += std::exchange(table(p)[value], place);
      }
      each_piece([&](int64_t p) {
        Tag* const places = table(p);
        for (int64_t i = begins_[p]; i < ends_[p]; ++i) to_[places[from_[i].key >> shift & mask]++] = from_[i];
      });
      std::swap(from_, to_);
      for (int64_t p = 0; p < pieces_; ++p) {
        begins_[p] = std::min(p * piece_, count_);
        ends_[p] = std::min((p + 1) * piece_, count_);
      }
    }
  }

  Tag* table(int64_t piece) { return counts_.data() + (piece << kDigitBits); }

  int64_t piece_, pieces_, count_ = 0;
  std::unique_ptr<Entry[]> from_, to_;
  std::vector<int64_t> begins_, ends_;
  std::vector<Tag> counts_;
};

}  // namespace fastloss
