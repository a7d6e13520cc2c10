// Package arch (see below).
package arch
