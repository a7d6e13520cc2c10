// Package hf (see below).
package hf
