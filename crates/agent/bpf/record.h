/* Recording an edge once: what makes a busy pipe cost one event.
 *
 *   seen[]   a table of signatures: what a thread has just done it did before. No helper call.
 *   edges    the truth: every (process, object, direction) that is new
 *   wakeups  a ring with the same for the agent; what does not fit it is in the map all the same.
 *            The agent empties the map before it fills: an edge seen again then is recorded again
 */
#pragma once
#include "kernel.h"
#include "tracker.h"

#define SEEN (1 << 16)

/* Set before the probes are loaded. */
const volatile u32 agent_pid = 0;
/* The bits of the kernel's preemption count that are set while an interrupt is served, hard or soft. */
const volatile u32 interrupt_bits = 0;

/* A window is open. Most probes stay attached between windows. */
u32 armed = 0;
/* Mixed into every signature: a new window forgets the old one's. */
u64 epoch = 1;
u64 seen[SEEN];
/* Counts the files of a bucket that began to be written: see objects.h. */
#define WRITE_BUCKETS 4096
u32 writes[WRITE_BUCKETS];
/* A file was written that could not be looked at: none can be taken for unwritten any more. */
u32 all_written = 0;
/* Something is frozen: every edge wakes the agent at once, as it may be aimed at that. */
u32 urgent = 0;
/* Edges put into the table since the agent has last emptied it. */
u64 recorded = 0;
u64 table_full = 0;
u64 ring_full = 0;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct edge_key);
	__type(value, struct edge_value);
} edges SEC(".maps");

#define RING (1 << 18)
#define WAKEUP_AT (RING / 4)

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, RING);
} wakeups SEC(".maps");

static __always_inline u64 mix(u64 one, u64 other)
{
	u64 sum = (one ^ (one >> 32)) * 0x9e3779b97f4a7c15ull + other;

	sum ^= sum >> 29;
	return sum * 0xbf58476d1ce4e5b9ull;
}

/* A thread of this window. Its start tells it from an earlier one of the same id. */
static __always_inline u64 identity(struct task_struct *task)
{
	return mix(task->start_boottime ^ epoch, task->pid);
}

static __always_inline bool is_seen(u64 signature)
{
	return seen[(signature >> 40) & (SEEN - 1)] == signature;
}

static __always_inline void set_seen(u64 signature)
{
	seen[(signature >> 40) & (SEEN - 1)] = signature;
}

static __always_inline u64 ticks(u64 ns)
{
	return ns / 10000000;
}

/* Not followed: the kernel's own threads hold no state of a process, and the agent itself. */
static __always_inline bool is_exempt(struct task_struct *task)
{
	return (task->flags & PF_KTHREAD) || task->tgid == agent_pid;
}

/* As is everybody while no window is open. */
static __always_inline bool is_unwatched(struct task_struct *task)
{
	return !armed || is_exempt(task);
}

static __always_inline struct edge_key key_of(struct task_struct *task, u16 kind, u64 a, u64 b,
					      u8 direction)
{
	struct edge_key key = {
		.pid = task->tgid,
		.kind = kind,
		.direction = direction,
		.start = ticks(BPF_CORE_READ(task, group_leader, start_boottime)),
		.a = a,
		.b = b,
	};

	return key;
}

/* Records an edge. False if there was no room for it, so that it must be tried again. */
static __noinline bool record(struct edge_key *key, struct edge_value *value)
{
	struct edge *wakeup;
	long error;

	if (!key || !value)
		return false;
	if (bpf_map_lookup_elem(&edges, key))
		return true;
	error = bpf_map_update_elem(&edges, key, value, BPF_NOEXIST);
	if (error == -17) /* another processor was faster */
		return true;
	if (error) {
		__sync_fetch_and_add(&table_full, 1);
		return false;
	}
	__sync_fetch_and_add(&recorded, 1);
	wakeup = bpf_ringbuf_reserve(&wakeups, sizeof(*wakeup), 0);
	if (!wakeup) {
		__sync_fetch_and_add(&ring_full, 1);
		return true;
	}
	__builtin_memcpy(&wakeup->key, key, sizeof(*key));
	__builtin_memcpy(&wakeup->value, value, sizeof(*value));
	/* The agent looks now and then by itself: waking it for every edge would cost more than the
	 * edge. */
	bpf_ringbuf_submit(wakeup,
			   urgent || bpf_ringbuf_query(&wakeups, BPF_RB_AVAIL_DATA) > WAKEUP_AT ?
				   BPF_RB_FORCE_WAKEUP :
				   BPF_RB_NO_WAKEUP);
	return true;
}

/* Records what a task does to an object, unless it is not watched. */
static __always_inline bool record_flow(struct task_struct *task, u16 kind, u64 a, u64 b,
					u8 direction)
{
	struct edge_value value = {};
	struct edge_key key;

	if (is_unwatched(task))
		return true;
	key = key_of(task, kind, a, b, direction);
	return record(&key, &value);
}

/* Records what a task does to another process; does nothing between threads of one. */
static __always_inline void record_relation(struct task_struct *task, struct task_struct *other,
					    u8 relation)
{
	struct edge_value value = {};
	struct edge_key key;
	u64 signature;

	if (is_unwatched(task) || is_exempt(other))
		return;
	signature = mix(mix(identity(task), other->start_boottime), ((u64)relation << 32) + other->pid);
	if (is_seen(signature))
		return;
	key = key_of(task, KIND_PROCESS, other->tgid,
		     ticks(BPF_CORE_READ(other, group_leader, start_boottime)), 0);
	key.relation = relation;
	if (record(&key, &value))
		set_seen(signature);
}
