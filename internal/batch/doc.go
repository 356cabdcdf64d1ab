// Package batch sends many concurrent commands in few round trips.
//
// A command is sent at once while few pipelines are in flight. Commands that arrive
// meanwhile wait in a queue, and are sent together in the next pipeline:
//
//	Do ──► queue ──► pipeline (at most maxInFlight) ──► Redis
//	  └──► inline: a lone command, on its caller's goroutine
//
// A Batcher also makes a caller's context and a time limit hold. While go-redis waits for
// a reply it notices no cancellation and, by default, no deadline. So callers wait in Do,
// and leave on their own. A lone command is sent inline only by a deadline-aware client,
// and only if Redis has answered promptly: then its caller notices a cancellation with the
// reply, or at its deadline.
//
// A Router has a Batcher for each master of a cluster. A Loader or Locker sends through a
// [Link], which sends nothing to a node whose breaker is open.
//
// The room knows nothing of what the commands mean. It is used by internal/protocol.
package batch
