// Package bench holds the benchmarks whose figures stand in
// docs/PERFORMANCE.md, each with the command that measures it.
package bench
