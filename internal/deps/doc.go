// Package deps holds the rules of the house as tests: who may import whom, and how large things may grow. It has no
// code of its own to use.
//
// Nouns: a room is a directory with its own place in the picture of DESIGN.md, with everything below it that is no room
// itself; a layer says which rooms a room may import; a fence says which rooms may import something from outside.
//
// Each rule has its reason beside it, and a test that shows that breaking it is noticed.
package deps
