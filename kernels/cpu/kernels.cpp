// Compiled once per instruction set; everything but the table has internal linkage, so no version leaks into another.
#include <algorithm>

#include "kernels.h"
#include "simd.h"

#include "codes.inl"

#include "kv_codes.inl"

#include "kv_blocks.inl"

#include "attention_block.inl"

#include "attention.inl"
#include "probe.inl"
#include "rows.inl"
#include "sample.inl"

#include "logprobs.inl"

#include "linear.inl"

#include "gate_up.inl"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define STRING_(a) #a
#define STRING(a) STRING_(a)

namespace tinycluster {

extern const Kernels JOIN(ISA, _kernels);
const Kernels JOIN(ISA, _kernels) = {STRING(ISA),  linear,      gate_up,     quantize, dequantize_row, rms_norm,
                                     ::swiglu,     ::add_fixed, rope,        write_kv, attention,      softmax,
                                     integer_dots, float_dots,  read_values, sample,   logprobs};

}  // namespace tinycluster
