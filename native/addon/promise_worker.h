// Work on a thread of the pool, for calls that may block; a promise is settled on the thread that asked for it.
#pragma once

#include <functional>
#include <memory>
#include <utility>

#include "addon/environment.h"
#include "addon/napi_support.h"
#include "verbs/verbs.h"

namespace quorate::addon {

class PromiseWorker : public Napi::AsyncWorker {
 public:
  // Runs `work`, which holds what it needs and may throw; what it holds is let go on the calling thread.
  static Napi::Promise start(Environment& environment, const char* name, std::function<void()> work) {
    auto* worker = new PromiseWorker(environment, name, std::move(work));
    const Napi::Promise promise = worker->deferred_.Promise();
    worker->Queue();  // deletes itself when done
    return promise;
  }

 protected:
  void Execute() override {
    try {
      work_();
    } catch (const VerbsError& error) {
      failure_ = std::make_unique<VerbsError>(error);
    } catch (const std::exception& error) {
      failure_ = std::make_unique<VerbsError>(unexpected(error));
    }
  }
  void OnOK() override {
    work_ = nullptr;
    if (failure_ != nullptr) {
      deferred_.Reject(environment_->makeError(*failure_));
    } else {
      deferred_.Resolve(Env().Undefined());
    }
  }
  void OnError(const Napi::Error& error) override { deferred_.Reject(error.Value()); }

 private:
  PromiseWorker(Environment& environment, const char* name, std::function<void()> work)
      : Napi::AsyncWorker(environment.env(), name),
        environment_(environment.shared_from_this()),
        deferred_(Napi::Promise::Deferred::New(environment.env())),
        work_(std::move(work)) {}

  const std::shared_ptr<Environment> environment_;
  Napi::Promise::Deferred deferred_;
  std::function<void()> work_;
  std::unique_ptr<VerbsError> failure_;
};

}  // namespace quorate::addon
