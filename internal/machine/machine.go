// Package machine names the processor that a program runs on.
package machine
