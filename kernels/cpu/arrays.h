// Arrays and weights as Python hands them over.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "dispatch.h"
#include "kernels.h"
#include "pool.h"

namespace tinycluster {

namespace nb = nanobind;

template <class T, int DIMS>
using Array = nb::ndarray<T, nb::ndim<DIMS>, nb::c_contig, nb::device::cpu>;

inline void require(bool condition, const char* rule) {
  if (!condition) throw nb::value_error(rule);
}

// A packed matrix and the array that holds it.
struct WeightHandle {
  Weight weight;
  nb::object values;
};

// One layer of a paged cache and the arrays that hold it.
struct KVCacheHandle {
  KVCache cache;
  nb::object keys, values;
};

}  // namespace tinycluster
