"""One room per lesson, named as its notebook: its measurements, its pictures, its checkers."""
