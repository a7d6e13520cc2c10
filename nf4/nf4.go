// Package nf4 (see below).
package nf4
