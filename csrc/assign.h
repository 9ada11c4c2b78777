// The task-aligned assignment of anchors to objects, and the description of one call. fastloss/assign.py states the mathematics.
#pragma once

#include "box.h"

namespace fastloss {

constexpr double kAssignEps = 1e-7;    // added to areas and to the other denominators of CIoU
constexpr double kAssignLeast = 1e-9;  // added to the largest worth before it divides

struct AssignCall {
  int64_t images, anchors, objects;
  const void* scores;  // images x anchors x classes
  int64_t image_stride, anchor_stride, class_stride;
  const void* boxes;        // acc, (images, 4, anchors)
  const void* points;       // acc, (2, anchors)
  const int64_t* labels;    // (images, objects), each a class
  const void* truth;        // acc, (images, objects, 4)
  const bool* valid;        // (images, objects)
  bool additive, logits;
  int64_t topk;
  double alpha, beta;

  int64_t* index;  // (images, anchors): the object, -1 for none
  void* weight;    // acc, (images, anchors)
};

}  // namespace fastloss
