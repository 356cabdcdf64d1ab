// Package oncetest helps to test programs that use fetchonce, and parts that
// they give to it.
package oncetest
