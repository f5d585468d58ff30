#pragma once
// Muon and what Newton-Schulz should be, in double precision plain loops.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <vector>

#include "optim/newton_schulz.h"

namespace osprey::oracle {

/// A small dense matrix of doubles.
struct Dense {
  size_t rows, cols;
  std::vector<double> v;
  Dense(size_t r, size_t c) : rows(r), cols(c), v(r * c) {}
  double& operator()(size_t r, size_t c) { return v[r * cols + c]; }
  double operator()(size_t r, size_t c) const { return v[r * cols + c]; }
};

inline Dense transpose(const Dense& a) {
  Dense t(a.cols, a.rows);
  for (size_t r = 0; r < a.rows; ++r)
    for (size_t c = 0; c < a.cols; ++c) t(c, r) = a(r, c);
  return t;
}

inline Dense product(const Dense& a, const Dense& b) {
  Dense p(a.rows, b.cols);
  for (size_t r = 0; r < a.rows; ++r)
    for (size_t k = 0; k < a.cols; ++k)
      for (size_t c = 0; c < b.cols; ++c) p(r, c) += a(r, k) * b(k, c);
  return p;
}

inline double norm(const Dense& a) {
  double sum = 0;
  for (double x : a.v) sum += x * x;
  return std::sqrt(sum);
}

/// Singular values by one-sided Jacobi rotations of the rows of the wide form, in descending order.
inline std::vector<double> singular_values(Dense a) {
  if (a.rows > a.cols) a = transpose(a);
  for (int sweep = 0; sweep < 60; ++sweep) {
    double largest = 0;
    for (size_t i = 0; i + 1 < a.rows; ++i)
      for (size_t j = i + 1; j < a.rows; ++j) {
        double ii = 0, jj = 0, ij = 0;
        for (size_t c = 0; c < a.cols; ++c) {
          ii += a(i, c) * a(i, c);
          jj += a(j, c) * a(j, c);
          ij += a(i, c) * a(j, c);
        }
        if (ij == 0 || std::abs(ij) <= 1e-15 * std::sqrt(ii * jj)) continue;
        largest = std::max(largest, std::abs(ij) / std::sqrt(ii * jj));
        const double zeta = (jj - ii) / (2 * ij);
        const double t = (zeta >= 0 ? 1.0 : -1.0) / (std::abs(zeta) + std::sqrt(1 + zeta * zeta));
        const double cosine = 1 / std::sqrt(1 + t * t), sine = cosine * t;
        for (size_t c = 0; c < a.cols; ++c) {
          const double x = a(i, c), y = a(j, c);
          a(i, c) = cosine * x - sine * y;
          a(j, c) = sine * x + cosine * y;
        }
      }
    if (largest < 1e-13) break;
  }
  std::vector<double> sigma(a.rows);
  for (size_t i = 0; i < a.rows; ++i) {
    double sum = 0;
    for (size_t c = 0; c < a.cols; ++c) sum += a(i, c) * a(i, c);
    sigma[i] = std::sqrt(sum);
  }
  std::sort(sigma.rbegin(), sigma.rend());
  return sigma;
}

/// The polynomial iteration on a matrix of any orientation, normalised first.
inline Dense newton_schulz(Dense x, NewtonSchulz method, int steps) {
  const double length = norm(x) * newton_schulz_safety(method);
  if (length == 0) return x;
  for (double& e : x.v) e /= length;
  for (int i = 0; i < steps; ++i) {
    const Quintic q = newton_schulz_step(method, i);
    const Dense gram = product(x, transpose(x)), square = product(gram, gram);
    Dense polynomial(gram.rows, gram.cols);
    for (size_t k = 0; k < gram.v.size(); ++k) polynomial.v[k] = q.b * gram.v[k] + q.c * square.v[k];
    const Dense px = product(polynomial, x);
    for (size_t k = 0; k < x.v.size(); ++k) x.v[k] = q.a * x.v[k] + px.v[k];
  }
  return x;
}

}  // namespace osprey::oracle
