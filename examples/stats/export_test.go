package main

// Main is main. The test binary runs it as the program.
var Main = main
