// Package doublequant (see below).
package doublequant
