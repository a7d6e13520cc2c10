// Package cast (see below).
package cast
