"""Experiments about the search itself: is what it finds better than what chance finds?"""
