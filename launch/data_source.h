#pragma once
// Loaders as the trainer wants them.

#include "framework/data/loader.h"
#include "framework/train/trainer.h"

namespace osprey {

class TrainSource final : public BatchSource {
 public:
  TrainSource(Loader& loader, const Communicator& world) : loader_(loader), world_(world) {}
  int64_t fill(int64_t step, int64_t micro_step, int64_t micro_steps, const BatchView& into) override;

 private:
  Loader& loader_;
  const Communicator& world_;
};

class ValidationSource final : public BatchSource {
 public:
  ValidationSource(ValidationLoader& loader, const Communicator& world) : loader_(loader), world_(world) {}
  int64_t fill(int64_t step, int64_t micro_step, int64_t micro_steps, const BatchView& into) override;

 private:
  ValidationLoader& loader_;
  const Communicator& world_;
};

}  // namespace osprey
