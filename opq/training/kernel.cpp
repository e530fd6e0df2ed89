// The fixed grid in one pass over memory each way, for float32 weights on a CPU.
//
// `opq/fixed.py` has the mathematics and the same function in torch's operations, to whose values its own are equal:
// forward w^ = kept sign(w) step round(max(0, |w|/step - shrink)), backward straight through on kept weights, zero on
// pruned ones. There it takes five passes forward and one backward; a small network's step is little else.
//
// Compiled by `opq/native.py`. Masks are a byte a weight, and lie in memory as their weights do.

#include <ATen/TensorSubclassLikeUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/native/TensorIterator.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <type_traits>

// The widest vectors that the processor at hand has, not the one that compiled: homes are shared by machines.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define OPQ_VECTORS __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define OPQ_VECTORS
#endif

namespace {

using at::Tensor;
using torch::autograd::variable_list;

struct Levels {
  float inverse, step, shrink;

  float operator()(float w, uint8_t kept) const {
    const float x = w * float(kept) * inverse;
    return std::copysign(std::rint(std::max(std::fabs(x) - shrink, 0.0f)), x) * step;
  }
};

struct Masked {
  float operator()(float g, uint8_t kept) const { return g * float(kept); }
};

// A run of elements that follow each other in memory, and one that does not. Lambdas cannot have clones.

OPQ_VECTORS void run(float* out, const float* in, const uint8_t* kept, int64_t n, Levels f) {
  for (int64_t i = 0; i < n; ++i) out[i] = f(in[i], kept[i]);
}

OPQ_VECTORS void run(float* out, const float* in, const uint8_t* kept, int64_t n, Masked f) {
  for (int64_t i = 0; i < n; ++i) out[i] = f(in[i], kept[i]);
}

template <class F>
void strided(char* const* data, const int64_t* strides, int64_t n, F f) {
  for (int64_t i = 0; i < n; ++i) {
    const float in = *reinterpret_cast<const float*>(data[1] + i * strides[1]);
    const uint8_t kept = *reinterpret_cast<const uint8_t*>(data[2] + i * strides[2]);
    *reinterpret_cast<float*>(data[0] + i * strides[0]) = f(in, kept);
  }
}

// `out = f(in, kept)` by torch's iterator and threads; `out` may be `in`.
template <class F>
void each(const Tensor& out, const Tensor& in, const Tensor& kept, F f) {
  auto iterator = at::TensorIteratorConfig()
                      .add_output(out)
                      .add_const_input(in)
                      .add_const_input(kept)
                      .check_all_same_dtype(false)
                      .resize_outputs(false)
                      .build();
  iterator.for_each([f](char** data, const int64_t* strides, int64_t n) {
    if (strides[0] == sizeof(float) && strides[1] == sizeof(float) && strides[2] == sizeof(uint8_t)) {
      run(reinterpret_cast<float*>(data[0]), reinterpret_cast<const float*>(data[1]),
          reinterpret_cast<const uint8_t*>(data[2]), n, f);
    } else {
      strided(data, strides, n, f);
    }
  });
}

Tensor grid_values(const Tensor& w, const Tensor& kept, double inverse, double step, double shrink) {
  TORCH_CHECK(w.scalar_type() == at::kFloat, "opq::grid wants float32 weights, got ", w.scalar_type());
  TORCH_CHECK(kept.scalar_type() == at::kByte, "opq::grid wants a mask of uint8, got ", kept.scalar_type());
  TORCH_CHECK(kept.sizes() == w.sizes(), "opq::grid wants a mask of shape ", w.sizes(), ", got ", kept.sizes());
  Tensor out = at::empty_like(w);
  each(out, w, kept, Levels{float(inverse), float(step), float(shrink)});
  return out;
}

// Whether nothing else, no other tensor, view or hook, can see these values: then they may be overwritten.
// A gradient that is a view of a product's result, as a linear layer's is, has a base that lives for its sake only.
bool unseen(const Tensor& grad) {
  if (grad.use_count() != 1 || !grad.is_non_overlapping_and_dense()) return false;
  const bool view = grad.is_view();
  return grad.storage().use_count() == (view ? 2 : 1) && (!view || grad._base().use_count() == 1);
}

struct GridBackward : public torch::autograd::Node {
  torch::autograd::SavedVariable kept;

  variable_list apply(variable_list&& grads) override {
    Tensor grad = std::move(grads[0]);
    if (!grad.defined()) return {Tensor()};
    const Tensor mask = kept.unpack();
    const bool plain = grad.scalar_type() == at::kFloat && grad.layout() == at::kStrided && grad.is_cpu();
    if (!plain || at::GradMode::is_enabled() || at::isTensorSubclassLike(grad)) return {at::mul(grad, mask)};
    at::AutoDispatchBelowADInplaceOrView below;
    const Tensor out = unseen(grad) ? grad : at::empty_like(grad);
    each(out, grad, mask, Masked{});
    return {out};
  }

  void release_variables() override { kept.reset_data(); }
  std::string name() const override { return "OpqGridBackward"; }
};

// Nodes count their own holders in newer versions of torch, and std::shared_ptr holds them in older ones.
template <class Node>
auto make_node() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, Node>) {
    return c10::make_intrusive<Node>();
  } else {
    return std::make_shared<Node>();
  }
}

Tensor grid(const Tensor& w, const Tensor& kept, double inverse, double step, double shrink) {
  static const auto values = c10::Dispatcher::singleton().findSchemaOrThrow("opq::grid", "").typed<decltype(grid)>();
  Tensor out;
  {
    at::AutoDispatchBelowADInplaceOrView below;
    out = values.call(w, kept, inverse, step, shrink);
  }
  if (torch::autograd::compute_requires_grad(w)) {
    auto node = make_node<GridBackward>();
    node->set_next_edges(torch::autograd::collect_next_edges(w));
    node->kept = torch::autograd::SavedVariable(kept, false);
    torch::autograd::set_history(out, node);
  }
  return out;
}

}  // namespace

TORCH_LIBRARY(opq, library) {
  library.def("grid(Tensor w, Tensor kept, float inverse, float step, float shrink) -> Tensor");
}
TORCH_LIBRARY_IMPL(opq, CPU, library) { library.impl("grid", &grid_values); }
TORCH_LIBRARY_IMPL(opq, Autograd, library) { library.impl("grid", &grid); }
