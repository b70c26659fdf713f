// ibv_create_comp_channel(3): a file descriptor that becomes readable when an armed completion queue gets a
// completion. Never blocks, so that it can sit in an event loop.
#pragma once

#include <infiniband/verbs.h>

#include <memory>

#include "provider/ibverbs/context.h"
#include "provider/ibverbs/lifecycle.h"
#include "verbs/verbs.h"

namespace quorate::ibverbs {

class IbvCompletionChannel final : public CompletionChannel {
 public:
  static std::shared_ptr<IbvCompletionChannel> create(std::shared_ptr<IbvContext> context);
  ~IbvCompletionChannel() override;

  int fd() const override;
  // The event is acknowledged before it is returned, so a queue can always be closed.
  std::shared_ptr<CompletionQueue> getEvent() override;
  void close() override;
  bool closed() const override { return lifecycle_.closed(); }

  const std::shared_ptr<IbvContext>& context() const { return context_; }
  ibv_comp_channel* handle() const { return handle_; }
  Lifecycle& lifecycle() { return lifecycle_; }

 private:
  IbvCompletionChannel(std::shared_ptr<IbvContext> context, ibv_comp_channel* handle)
      : context_(std::move(context)), handle_(handle), fd_(handle->fd) {}

  const std::shared_ptr<IbvContext> context_;
  ibv_comp_channel* const handle_;
  const int fd_;
  Lifecycle lifecycle_{"CompletionChannel"};
};

}  // namespace quorate::ibverbs
