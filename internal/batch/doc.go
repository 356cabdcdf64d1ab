// Package batch sends commands of many goroutines in few round trips. internal/protocol uses it.
//
// A command is sent at once while few pipelines are in flight. Commands that arrive
// meanwhile wait in a queue, and are sent together in the next pipeline:
//
//	Do ──► queue ──► pipeline (at most maxInFlight) ──► Redis
//	  └──► inline: a lone command, on its caller's goroutine
//
// A [Batcher] also enforces the context of a caller and a time limit. While go-redis waits for
// a reply it notices no cancellation and, by default, no deadline. So callers wait in Do, and
// return without the reply when their time is over. A lone command is sent inline only if the
// client is deadline-aware and the last reply was prompt: its caller then notices a cancellation
// with the reply, or at its deadline.
//
// A [Router] has a Batcher for each master of a cluster. A Loader or Locker sends through a
// [Link], which sends nothing to a node whose breaker is open.
//
// For what the inline send and the linger gain, see "What does each mechanism for speed gain?" in
// docs/internals/design.md.
package batch
