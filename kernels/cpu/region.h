// The memory that the ranks of one group share: threads on an anonymous mapping, processes on a mapped file.
//
//     header | one state per rank | size * size mailboxes | size * kSlots slots of slot_bytes | size * size rings
//
// A slot is what one rank shows to the others in a collective; slots take turns, so that a rank may fill the next one
// while a slower rank still reads the last. A mailbox is a ring of bytes from one rank to another.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "bell.h"

namespace tinycluster {

constexpr std::uint64_t kMagic = 0x3176'7265'7473'756cULL;
constexpr std::uint32_t kVersion = 2;
constexpr std::size_t kLine = 64;
constexpr std::size_t kSlots = 4;
constexpr std::size_t kReasonBytes = 256;

enum class Health : std::uint32_t { whole, breaking, broken };
enum class Presence : std::uint32_t { absent, attached, left };

struct alignas(kLine) Header {
  std::atomic<std::uint64_t> magic;  // stored last: whoever sees it sees the rest
  std::uint32_t version;
  std::uint32_t size;
  std::uint64_t epoch;
  std::uint64_t slot_bytes;
  std::uint64_t mailbox_bytes;
  alignas(kLine) std::atomic<Health> health;
  char reason[kReasonBytes];  // why the group broke; readable once health is broken
  Bell bell;
};

struct alignas(kLine) RankState {
  std::atomic<std::uint64_t> arrived;  // how many meetings this rank has come to
  std::atomic<Presence> presence;
  std::uint64_t calls[kSlots];  // what the rank called in its last meetings, so that mismatched calls are noticed
};

struct alignas(kLine) Mailbox {
  std::atomic<std::uint64_t> written;  // bytes, ever
  alignas(kLine) std::atomic<std::uint64_t> taken;
  Bell bell;
};

static_assert(std::atomic<std::uint64_t>::is_always_lock_free && std::atomic<std::uint32_t>::is_always_lock_free);

class Region {
 public:
  Region(std::byte* memory, std::size_t size, std::size_t slot_bytes, std::size_t mailbox_bytes)
      : memory_(memory), size_(size), slot_bytes_(round_up(slot_bytes)), mailbox_bytes_(round_up(mailbox_bytes)) {}

  static std::size_t round_up(std::size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

  std::size_t size() const { return size_; }
  std::size_t slot_bytes() const { return slot_bytes_; }
  std::size_t mailbox_bytes() const { return mailbox_bytes_; }
  std::size_t total_bytes() const { return rings_at() + size_ * size_ * mailbox_bytes_; }

  Header& header() const { return *reinterpret_cast<Header*>(memory_); }
  RankState& state(std::size_t rank) const { return reinterpret_cast<RankState*>(memory_ + sizeof(Header))[rank]; }
  Mailbox& mailbox(std::size_t from, std::size_t to) const {
    return reinterpret_cast<Mailbox*>(memory_ + mailboxes_at())[from * size_ + to];
  }
  std::byte* slot(std::size_t rank, std::size_t use) const {
    return memory_ + slots_at() + (rank * kSlots + use % kSlots) * slot_bytes_;
  }
  std::byte* ring(std::size_t from, std::size_t to) const {
    return memory_ + rings_at() + (from * size_ + to) * mailbox_bytes_;
  }

  // The memory must be zero, which a new mapping is.
  void format(std::uint64_t epoch) const {
    Header& h = header();
    h.version = kVersion;
    h.size = static_cast<std::uint32_t>(size_);
    h.epoch = epoch;
    h.slot_bytes = slot_bytes_;
    h.mailbox_bytes = mailbox_bytes_;
    h.magic.store(kMagic);
  }

  // What is wrong with a region that somebody else formatted, or null.
  const char* mismatch(std::uint64_t epoch) const {
    const Header& h = header();
    if (h.magic.load() != kMagic) return "it does not start with the magic number";
    if (h.version != kVersion) return "its version differs";
    if (h.epoch != epoch) return "its epoch differs";
    if (h.size != size_) return "its number of ranks differs";
    if (h.slot_bytes != slot_bytes_ || h.mailbox_bytes != mailbox_bytes_) return "its buffer sizes differ";
    return nullptr;
  }

 private:
  std::size_t mailboxes_at() const { return sizeof(Header) + size_ * sizeof(RankState); }
  std::size_t slots_at() const { return mailboxes_at() + size_ * size_ * sizeof(Mailbox); }
  std::size_t rings_at() const { return slots_at() + size_ * kSlots * slot_bytes_; }

  std::byte* memory_;
  std::size_t size_, slot_bytes_, mailbox_bytes_;
};

}  // namespace tinycluster
