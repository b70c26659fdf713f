// See completion_channel.h.
#include "provider/ibverbs/completion_channel.h"

#include <fcntl.h>

#include <cerrno>

#include "provider/ibverbs/completion_queue.h"
#include "provider/ibverbs/errors.h"

namespace quorate::ibverbs {

std::shared_ptr<IbvCompletionChannel> IbvCompletionChannel::create(std::shared_ptr<IbvContext> context) {
  errno = 0;
  ibv_comp_channel* handle = context->lib().createCompChannel(context->handle());
  if (handle == nullptr) {
    throwSystemError("ibv_create_comp_channel", errno, "Creating a completion channel on " + context->device().name,
                     "Each takes a file descriptor; ulimit -n is the limit.");
  }
  std::shared_ptr<IbvCompletionChannel> channel(new IbvCompletionChannel(std::move(context), handle));
  const int flags = fcntl(handle->fd, F_GETFL);
  if (flags < 0 || fcntl(handle->fd, F_SETFL, flags | O_NONBLOCK) != 0) {
    throwSystemError("fcntl", errno, "Making a completion channel non-blocking", "");
  }
  return channel;
}

IbvCompletionChannel::~IbvCompletionChannel() {
  closeInDestructor(this, {context_});
}

void IbvCompletionChannel::close() {
  lifecycle_.close([this] {
    const int errnum = context_->lib().destroyCompChannel(handle_);
    if (errnum != 0) {
      throwSystemError("ibv_destroy_comp_channel", errnum, "Closing a completion channel", "");
    }
  });
}

int IbvCompletionChannel::fd() const {
  // After close() the number may belong to another file.
  if (lifecycle_.closed()) throwClosed(kind());
  return fd_;
}

std::shared_ptr<CompletionQueue> IbvCompletionChannel::getEvent() {
  const auto lock = lifecycle_.use();
  for (;;) {
    ibv_cq* handle = nullptr;
    void* cookie = nullptr;
    errno = 0;
    if (context_->lib().getCqEvent(handle_, &handle, &cookie) != 0) {
      if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR) return nullptr;
      throwSystemError("ibv_get_cq_event", errno, "Reading a completion channel", "");
    }
    // The queue's destruction waits for the acknowledgement, so the object is still there; it may be in its
    // destructor, though, and then has no owner to be returned. There is no cookie if that could not destroy the queue.
    std::shared_ptr<VerbsObject> queue;
    if (cookie != nullptr) queue = static_cast<IbvCompletionQueue*>(cookie)->weak_from_this().lock();
    context_->lib().ackCqEvents(handle, 1);
    if (queue != nullptr) return std::static_pointer_cast<CompletionQueue>(queue);
  }
}

}  // namespace quorate::ibverbs
