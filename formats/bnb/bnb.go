// Package bnb (see below).
package bnb
