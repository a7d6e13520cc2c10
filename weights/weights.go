// Package weights (see below).
package weights
