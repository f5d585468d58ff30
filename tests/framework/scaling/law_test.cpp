#include "framework/scaling/law.h"

#include <gtest/gtest.h>

#include "tests/framework/scaling/synthetic.h"
#include "tests/support/refusal.h"

namespace osprey {
namespace {

using namespace test;

std::vector<Law> every_law() {
  return {Law::chinchilla(), Law::qat(), Law::quartet({"w", "wa"}),
          Law::per_optimizer({"adamw", "muon", "sgd"})};
}

TEST(Law, GradientsAreThoseOfFiniteDifferences) {
  for (const Law& law : every_law()) {
    for (uint64_t draw = 0; draw < 20; ++draw) {
      std::vector<double> theta;
      for (size_t i = 0; i < law.parameters().size(); ++i) {
        const double u = static_cast<double>(random_uniform(5, draw, i));
        theta.push_back(law.parameters()[i].logarithmic ? 3 * u - 1 : 0.1 + u);
      }
      LawPoint p;
      p.parameters = std::exp(3 + static_cast<double>(draw % 4));
      p.tokens = std::exp(2 + static_cast<double>(draw % 5));
      p.block = 32;
      p.group = draw % law.groups().size();
      std::vector<double> gradient(theta.size(), NAN);
      const double at = law.log_prediction(theta, p, gradient);
      EXPECT_EQ(law.log_prediction(theta, p, {}), at);
      for (size_t i = 0; i < theta.size(); ++i) {
        const double h = 1e-5, middle = theta[i];
        theta[i] = middle + h;
        const double above = law.log_prediction(theta, p, {});
        theta[i] = middle - h;
        const double below = law.log_prediction(theta, p, {});
        theta[i] = middle;
        EXPECT_NEAR(gradient[i], (above - below) / (2 * h), 1e-8 * (1 + std::abs(gradient[i])))
            << law.name() << " " << law.parameters()[i].name << " of group " << p.group;
      }
    }
  }
}

TEST(Law, ChinchillaSaysWhatItsFormulaSays) {
  LawPoint p;
  p.parameters = 7e10, p.tokens = 1.4e12;
  const Law law = Law::chinchilla();
  EXPECT_NEAR(law.prediction(theta_of(law, hoffmann), p),
              406.4 / std::pow(7e10, 0.34) + 410.7 / std::pow(1.4e12, 0.28) + 1.69, 1e-12);
}

TEST(Law, QatGivesTheWorkedValueOfItsPaper) {
  LawPoint p;
  p.parameters = 594e6, p.tokens = 1e11, p.block = 32;
  const Law law = Law::qat();
  EXPECT_NEAR(law.prediction(theta_of(law, chen), p), 0.044, 5e-4);
}

TEST(Law, QuartetScalesSizeAndTokensOfItsScheme) {
  const Law law = Law::quartet({"mxfp4/mxfp4/mxfp4"});
  std::vector<double> natural = quartet_base;
  natural.insert(natural.end(), {0.6, 0.9});
  const std::vector<double> theta = theta_of(law, natural);
  LawPoint quantized, same;
  quantized.parameters = 1e9, quantized.tokens = 1e10, quantized.group = 1;
  same.parameters = 0.6e9, same.tokens = 0.9e10;
  EXPECT_NEAR(law.prediction(theta, quantized), law.prediction(theta, same), 1e-12);
  const double inside = 1.52e5 / std::pow(0.6e9, 0.589) + 5.25e5 / std::pow(0.9e10, 0.544);
  EXPECT_NEAR(law.prediction(theta, same), std::pow(inside, 0.274) + 1.35, 1e-12);
}

TEST(Law, TheFirstOptimizerIsTheReference) {
  const Law law = Law::per_optimizer({"adamw", "muon"});
  EXPECT_EQ(law.parameters().size(), 6u);
  EXPECT_EQ(law.parameters().back().name, "rho[muon]");
  std::vector<double> natural = hoffmann;
  natural.push_back(1.5);
  LawPoint muon, adamw;
  muon.parameters = 1e8, muon.tokens = adamw.tokens = 1e9, muon.group = 1;
  adamw.parameters = 1.5e8;
  EXPECT_NEAR(law.prediction(theta_of(law, natural), muon), law.prediction(theta_of(law, natural), adamw),
              1e-12);
}

TEST(Law, HugeInnerValuesDoNotOverflow) {
  const Law law = Law::chinchilla();
  LawPoint p;
  p.parameters = 1e9, p.tokens = 1e10;
  std::vector<double> gradient(5);
  for (const double value : {-2000.0, 2000.0}) {
    const std::vector<double> theta{value, value, value, 0.3, 0.3};
    EXPECT_TRUE(std::isfinite(law.log_prediction(theta, p, gradient)));
    for (const double g : gradient) EXPECT_TRUE(std::isfinite(g));
  }
}

TEST(Law, AConstantThatIsNotAboveZeroIsRefused) {
  const Law law = Law::chinchilla();
  EXPECT_NE(refusal([&] { law.parameters()[law.index("E")].inner(-1); }).find("E cannot be -1"),
            std::string::npos);
  EXPECT_NE(refusal([&] { law.parameters()[law.index("alpha")].inner(NAN); }).find("alpha"),
            std::string::npos);
  EXPECT_NE(refusal([&] { law.index("zeta"); }).find("zeta"), std::string::npos);
}

}  // namespace
}  // namespace osprey
